"""Logs besides the run folder's own: what TensorBoard's files hold, how a run goes on, what a recipe may say."""

import importlib.util
import json

import numpy as np
import pytest
from mmengine.visualization.vis_backend import LocalVisBackend, TensorboardVisBackend
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genflow.config.comparison import first_difference
from genflow.config.graph import ComponentGraph
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.runs.folder import RunFolder

TENSORBOARD = {"visualizer": {"vis_backends": [{"type": "TensorboardVisBackend"}]}}


def logged(run):
    """Tags with (step, value) in TensorBoard's files, and its last picture of samples."""
    events = EventAccumulator(str(run.visualizer_folder), {"scalars": 0, "images": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, events.Images("samples") if "samples" in tags["images"] else []


def test_tensorboard_holds_what_the_run_folder_holds_and_a_resumed_run_goes_on(tiny_file, tmp_path):
    folder, often = tmp_path / "run", {"default_hooks.checkpoint": {"interval": 1, "max_keep_ckpts": 9}}
    run = RunFolder(train(tiny_file, {**TENSORBOARD, **often}, None, TrainOptions(folder)))
    # Killed after the second update: the third one is done, and logged, once more.
    run.checkpoint_file(3).unlink()
    train(tiny_file, {**TENSORBOARD, **often, "train_cfg.max_iters": 4}, None, TrainOptions(folder, "auto"))
    assert len(list(run.visualizer_folder.iterdir())) == 2

    scalars, pictures = logged(run)
    lines = [json.loads(line) for line in run.scalars_file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    names = lines[0].keys() - {"step"}
    assert {tag for tag in scalars if tag.startswith("train/")} == {
        *(f"train/{name}" for name in names),
        "train/images_per_second",
    }
    for name in names:
        expected = [(line["step"], np.float32(line[name])) for line in lines]
        assert [(step, np.float32(value)) for step, value in scalars[f"train/{name}"]] == expected
    assert all(step == value for step, value in scalars["iter"])
    assert all(value > 0 for _, value in scalars["train/images_per_second"])

    figures = run.metrics["evaluation"]["model"]
    assert {tag: scalars[tag][-1] for tag in scalars if tag.startswith("evaluation/")} == {
        f"evaluation/{name}": (4, pytest.approx(value)) for name, value in figures.items()
    }
    with Image.open(folder / "samples" / "step_00000004.png") as grid:
        assert pictures[-1].step == 4 and (pictures[-1].width, pictures[-1].height) == grid.size
    assert not (run.visualizer_folder / "scalars.json").exists()


def test_a_run_without_backends_logs_nowhere_else(finished_run):
    assert not RunFolder(finished_run).visualizer_folder.exists()


def test_a_backend_that_fails_does_not_end_the_training(tiny_file, tmp_path, monkeypatch):
    def broken(self, name, value, step=0, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorboardVisBackend, "add_scalar", broken)
    both = [{"type": "TensorboardVisBackend"}, {"type": "LocalVisBackend"}]
    options = {"visualizer": {"vis_backends": both, "interval": 2}, "evaluation": None}
    run = RunFolder(train(tiny_file, options, None, TrainOptions(tmp_path / "run")))
    said = "".join(path.read_text() for path in run.path.glob("*/*.log"))
    assert said.count("TensorboardVisBackend: fails and gets nothing more: ConnectionError") == 1
    lines = (run.visualizer_folder / "scalars.json").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3] and run.is_complete


def test_a_backend_that_does_not_start_is_one_line_before_the_first_update(tiny_file, tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(LocalVisBackend, "_init_env", refuse)
    options = {"visualizer": {"vis_backends": [{"type": "LocalVisBackend"}]}}
    with pytest.raises(UserError, match=r"visualizer: LocalVisBackend: does not start: .*api_key not configured"):
        train(tiny_file, options, None, TrainOptions(tmp_path / "run"))
    monkeypatch.undo()
    train(tiny_file, {**options, "evaluation": None}, None, TrainOptions(tmp_path / "run"))  # nothing is in its way


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"vis_backends": [{"type": "TensorbordVisBackend"}]}, r"vis_backends\.0\.type: .*'TensorboardVisBackend'"),
        ({"vis_backends": [{"type": "LocalVisBackend", "image_dir": "a"}]}, r"no argument 'image_dir'.*img_save_dir"),
        ({"backends": []}, r"visualizer\.backends: unknown key; nearest match: 'vis_backends'"),
        ({"interval": 0}, r"visualizer\.interval: found 0, expected an integer"),
    ],
)
def test_mistakes_in_the_section_are_one_line(tiny_file, section, message):
    with pytest.raises(UserError, match=message):
        ComponentGraph.load(tiny_file, {"visualizer": section})


@pytest.mark.parametrize(
    ("backends", "message"),
    [
        (["WandbVisBackend"], r"vis_backends\.0: WandbVisBackend needs the package 'wandb': pip install wandb$"),
        (["TensorboardVisBackend"], r"vis_backends\.0: .* 'tensorboard': pip install \"genflow\[tensorboard\]\"$"),
        (["LocalVisBackend"] * 2, r"vis_backends\.1\.type: found 'LocalVisBackend' once more"),
    ],
)
def test_missing_packages_and_doubled_backends_are_said_before_anything_is_written(
    tiny_file, tmp_path, monkeypatch, backends, message
):
    from genflow.engine import visualizer

    found = importlib.util.find_spec
    missing = ("wandb", "tensorboard")
    monkeypatch.setattr(visualizer, "find_spec", lambda name: None if name in missing else found(name))
    section = {"vis_backends": [{"type": name} for name in backends]}
    with pytest.raises(UserError, match=message):
        train(tiny_file, {"visualizer": section}, None, TrainOptions(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_where_logs_go_is_no_part_of_a_model(tiny_file):
    with_logs, without = ComponentGraph.load(tiny_file, TENSORBOARD), ComponentGraph.load(tiny_file)
    assert with_logs.plain != without.plain
    assert first_difference(with_logs, without) is None and first_difference(without, with_logs) is None
