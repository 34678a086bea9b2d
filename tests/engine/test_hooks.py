"""Hooks around kills and short runs: scalars, sample grids, times, initial weights in averages, folders of others."""

import json
import shutil

import pytest

from genflow.engine.hooks import _lines_until
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.generators.flow import FlowGenerator
from genflow.runs.folder import RunFolder

LINES = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": 0.25}', b'{"step": 3, "loss": 0.125}']
FOREIGN = [b"{}", b"note", b'{"step": "two"}', b"[1, 2]", b"3", b"", b'{"step": null}', b"\xff\xfe", b"[" * 9999, b"{1"]


def joined(lines):
    return b"".join(line + b"\n" for line in lines)


@pytest.mark.parametrize("end", [b"", b'{"step": 4, "lo', b"{", b'{"step": 9}', b"\0\0"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_only_later_scalars_and_a_torn_last_line_are_dropped(foreign, end):
    lines = [LINES[0], foreign, *LINES[1:], foreign]
    for step in range(5):
        kept = [foreign if line is foreign else line for line in lines if line is foreign or line in LINES[:step]]
        assert _lines_until(step, joined(lines) + end) == joined(kept)


def test_a_last_line_that_lacks_its_end_only_is_kept():
    assert _lines_until(3, b"\n".join(LINES)) == joined(LINES)
    assert _lines_until(2, b"\n".join(LINES)) == joined(LINES[:2])


def resume(tiny_file, run, **overrides):
    return train(tiny_file, overrides, options=TrainOptions(run, "auto"))


def log(run):
    return "".join(path.read_text() for path in sorted(run.glob("*/*.log")))


def test_lines_of_others_in_scalars_outlive_a_resume(tiny_file, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    scalars = run / "scalars.jsonl"
    before = scalars.read_bytes().splitlines()
    scalars.write_bytes(joined([*before[:2], *FOREIGN, before[2]]) + b'{"step": 4, "lo')
    resume(tiny_file, run, evaluation=None)
    assert scalars.read_bytes() == joined([*before[:2], *FOREIGN, before[2]])


def test_a_grid_that_is_due_is_drawn_after_a_kill(tiny_file, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    picture = run / "samples" / "step_00000003.png"
    expected = picture.read_bytes()
    picture.unlink()
    resume(tiny_file, run, evaluation=None)
    assert picture.read_bytes() == expected
    picture.write_bytes(b"mine")  # one that is there is left alone
    resume(tiny_file, run, evaluation=None)
    assert picture.read_bytes() == b"mine"


def test_a_grid_that_needs_too_much_memory_does_not_end_the_training(tiny_file, tmp_path, monkeypatch):
    def sample(self, *arguments, **options):
        raise MemoryError

    monkeypatch.setattr(FlowGenerator, "sample", sample)
    run = train(tiny_file, {"evaluation": None}, options=TrainOptions(tmp_path / "run"))
    assert "no sample grid after 3 updates: out of memory; see default_hooks.samples" in log(run)
    assert RunFolder(run).is_complete


def test_metrics_say_how_long_training_took_after_any_kill(tiny_file, tmp_path):
    options = {"default_hooks.checkpoint": {"interval": 1, "max_keep_ckpts": 9}, "evaluation": None}
    run = train(tiny_file, options, options=TrainOptions(tmp_path / "run"))
    metrics = RunFolder(run).metrics
    assert metrics["training"]["updates"] == 3 and metrics["training"]["seconds"] > 0
    # Killed in the artifact: no update is left to do.
    for name in ("metrics.json", "generator.safetensors"):
        (run / name).unlink()
    resume(tiny_file, run, **options)
    assert RunFolder(run).metrics == metrics
    # Killed after the second update.
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "step_00000003.pt").unlink()
    resume(tiny_file, run, **options)
    assert RunFolder(run).metrics["training"]["updates"] == 3


def test_a_resumed_run_whose_evaluation_was_killed_is_evaluated(tiny_file, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    figures = RunFolder(run).metrics["evaluation"]
    metrics = {name: value for name, value in RunFolder(run).metrics.items() if name != "evaluation"}
    RunFolder(run).metrics_file.write_text(json.dumps(metrics))
    resume(tiny_file, run)
    assert RunFolder(run).metrics["evaluation"] == figures


def test_a_run_shorter_than_its_averages_memory_says_so_twice(finished_run, tiny_file, tmp_path):
    said = [line for line in log(finished_run).splitlines() if "of the initial weights" in line]
    assert len(said) == 2
    for line, verb in zip(said, ("will hold", "holds"), strict=True):
        assert f"after 3 updates, the average 'main' {verb} 72.9% and 'slow' {verb} 97.0%; " in line
        assert "--average none samples the weights themselves" in line
    run = train(
        tiny_file, {"ema": {"main": {"half_life": 1000}}, "evaluation": None}, None, TrainOptions(tmp_path / "run")
    )
    assert "of the initial weights" not in log(run)  # early averages forget them


def test_no_average_may_have_the_name_of_the_weights_themselves(tiny_file, tmp_path):
    with pytest.raises(UserError, match=r"ema\.none: this is what the weights themselves are called"):
        train(tiny_file, {"ema": {"none": {"decay": 0.9}}}, None, TrainOptions(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resumed", [None, "auto"])
def test_training_leaves_folders_of_others_alone(tiny_file, tmp_path, resumed):
    folder = tmp_path / "exp"
    (folder / "checkpoints").mkdir(parents=True)
    files = {
        "recipe.yaml": b"# mine, with what I thought\nmodel: {}\n",
        "checkpoints/.upload.abcd_123.partial": b"half",
        "checkpoints/step_best.pt": b"best",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="exp: holds 'checkpoints' and is no run folder; pass another --work-dir"):
        train(tiny_file, None, None, TrainOptions(folder, resumed))
    left = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert left == files
