"""Drifting from recipe to run folder: queues beside checkpoints, exact resume, refill, what is refused."""

import copy
import json
import multiprocessing
import runpy
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from genflow.config.recipe import dump_yaml
from genflow.data.queue_feed import QueueFeed
from genflow.engine import loop
from genflow.engine.loop import UpdateLoop
from genflow.engine.prefetch import Rows
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.runs.folder import open_run
from genflow.weights import read_checkpoint, read_state, read_weights, write_checkpoint

ROOT = Path(__file__).parents[2]
UPDATES, BATCH = 6, 16
DIGITS = {"image_size": 8, "channels": 1}
BACKBONE = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "num_classes": 10, "context_tokens": 1}
RECIPE = {
    "model": {
        "type": "Drifting",
        "backbone": {"type": "LightningDiT", **DIGITS, **BACKBONE, "style_codebooks": 2, "style_entries": 4},
        "field": {"type": "DriftingField", "annealing": {"factor": 2.0, "updates": 5}},
        "codec": {"type": "Identity", **DIGITS},
        "encoders": [{"type": "LatentMAE", **DIGITS, "width": 4, "depths": [1, 1], "num_classes": 0}],
        "guidance": {"type": "NegativeMixing", "negatives": 2},
        "labels_per_update": 4,
        "samples_per_label": 4,
        "positives": 4,
        "diagnostics": True,
        "queue": {"per_class": 8, "overall": 40},
    },
    "train_dataloader": {"dataset": {"type": "Digits"}, "batch_size": BATCH},
    "train_cfg": {"max_iters": UPDATES},
    "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 1e-2}},
    "ema": {"main": {"decay": 0.9}},
    "default_hooks": {"checkpoint": {"interval": 3, "max_keep_ckpts": 10}, "samples": {"per_class": 1}},
}


def write_recipe(folder, queue=None):
    """The recipe's file, with other settings of the queue."""
    recipe = copy.deepcopy(RECIPE)
    recipe["model"]["queue"] |= queue or {}
    path = folder / "drifting.yaml"
    path.write_text(dump_yaml(recipe), encoding="utf-8")
    return path


def run(folder, resume=None, queue=None, **overrides):
    options = TrainOptions(folder / "run", None if resume is None else str(resume))
    return train(write_recipe(folder, queue), overrides, None, options)


def checkpoint(work_dir, step):
    return work_dir / "checkpoints" / f"step_{step:08d}.pt"


def queue_file(work_dir, step, rank=0, processes=1):
    return checkpoint(work_dir, step).with_suffix(f".process_{rank}_of_{processes}")


def files(work_dir):
    return sorted(path.name for path in (work_dir / "checkpoints").iterdir())


def scalars(work_dir):
    return [json.loads(line) for line in (work_dir / "scalars.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never interrupted; read only."""
    folder = tmp_path_factory.mktemp("drifting")
    return run(folder)


def same_ends(ours, expected):
    """Whether the last checkpoints are equal, and what was exported."""
    states = []
    for work_dir in (ours, expected):
        last = read_checkpoint(checkpoint(work_dir, UPDATES))
        weights = read_weights(work_dir / "generator.safetensors")
        states.append({"model": last["model"], "average": last["averages"]["main"], "exported": weights})
    one, other = states
    return all(torch.equal(one[part][name], other[part][name]) for part in other for name in other[part])


def kept(path):
    """The filled entries of a queue, and its counters."""
    state = read_state(path)
    found = []
    for name in ("class", "overall"):
        filled = state[f"{name}.filled"]
        found += [state[f"{name}.entries"][index, :count] for index, count in enumerate(filled)]
        found += [state[f"{name}.next_slot"], filled]
    return found


def test_run_trains_and_samples(finished):
    values = scalars(finished)
    assert [entry["step"] for entry in values] == list(range(1, UPDATES + 1))
    assert all(entry["grad_norm"] > 0 and entry["loss"] > 0 for entry in values)
    assert all(
        0 < entry["coverage"] <= 1 <= entry["neighbours_0.02"] < entry["neighbours_0.2"] <= 4 for entry in values
    )
    assert files(finished) == sorted(
        path.name for step in (3, 6) for path in (checkpoint(finished, step), queue_file(finished, step))
    )
    assert not any(name.startswith("encoders") for name in read_checkpoint(checkpoint(finished, 6))["model"])
    filled = read_state(queue_file(finished, 6))
    assert filled["overall.filled"].tolist() == [40]
    assert filled["class.filled"].max() == 8
    generator = open_run(finished).generator()
    assert len(generator.sample(torch.arange(10), seed=0).flatten(1).unique(dim=0)) == 10


@pytest.mark.parametrize("ahead", [False, True])
def test_interrupted_run_goes_on_exactly(finished, tmp_path, monkeypatch, ahead):
    """As on a GPU too, where a thread makes the rows of the next update while the present one runs."""
    monkeypatch.setattr(loop, "Rows", partial(Rows, ahead=ahead))
    update = UpdateLoop.update_on

    def interrupted(loop, rows):
        if loop.iter == 4:
            raise KeyboardInterrupt
        return update(loop, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(UpdateLoop, "update_on", interrupted)
        run(tmp_path)
    assert len(scalars(tmp_path / "run")) == 4
    run(tmp_path, "auto")
    assert scalars(tmp_path / "run") == scalars(finished)
    assert same_ends(tmp_path / "run", finished)
    queues = [kept(queue_file(work_dir, UPDATES)) for work_dir in (tmp_path / "run", finished)]
    assert all(torch.equal(*pair) for pair in zip(*queues, strict=True))


def test_the_queue_matters_for_exactness(finished, tmp_path):
    """An older queue beside the checkpoint makes another run."""
    work_dir = tmp_path / "run"
    shutil.copytree(finished / "checkpoints", work_dir / "checkpoints")
    shutil.copy(queue_file(finished, UPDATES), queue_file(work_dir, 3))
    run(tmp_path, checkpoint(work_dir, 3))
    assert scalars(work_dir)[0]["step"] == 4 and scalars(work_dir)[0]["loss"] != scalars(finished)[3]["loss"]
    assert {f"abandoned_{path(finished, 6).name}" for path in (checkpoint, queue_file)} < set(files(work_dir))


@pytest.fixture
def observed(monkeypatch):
    """The update of every batch that is pushed to a queue, in order."""
    updates = []
    push = QueueFeed.push

    def noted(feed, batch):
        updates.append(batch["draws"].positions[0].item() // BATCH)
        push(feed, batch)

    monkeypatch.setattr(QueueFeed, "push", noted)
    return updates


def test_refill_reads_past_updates_and_trains_on(finished, tmp_path, observed):
    refill = {"resume": "refill", "refill_updates": 2}
    work_dir = run(tmp_path, queue=refill)
    assert files(work_dir) == [checkpoint(work_dir, step).name for step in (3, 6)]
    assert observed == [0, *range(UPDATES)]  # the first one is rehearsed
    observed.clear()
    run(tmp_path, checkpoint(work_dir, 3), queue=refill)
    assert observed == [0, 1, 2, 3, 4, 5]
    assert [entry["step"] for entry in scalars(work_dir)] == list(range(1, UPDATES + 1))
    assert scalars(work_dir)[3]["loss"] != scalars(finished)[3]["loss"]  # the first update is missing from the queue
    run(tmp_path, checkpoint(work_dir, 3), queue=refill | {"refill_updates": 3000})
    assert scalars(work_dir) == scalars(finished)


def test_old_checkpoints_are_removed_with_their_queues(tmp_path):
    newest = {"interval": 1, "max_keep_ckpts": 2}
    work_dir = run(tmp_path, **{"default_hooks.checkpoint": newest, "train_cfg.max_iters": 4})
    assert files(work_dir) == sorted(
        path.name for step in (3, 4) for path in (checkpoint(work_dir, step), queue_file(work_dir, step))
    )


def damage(path):
    for each in path.parent.glob("*.process_0_of_1"):  # a checkpoint is passed over if an older one is in order
        each.write_bytes(each.read_bytes()[:1000])


def replace_by_weights(path):
    write_checkpoint(path, {"weight": torch.ones(3)})


def shrink(path):
    state = read_state(path)
    write_checkpoint(path, {name: value[:, :4] if "entries" in name else value for name, value in state.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, "process_0_of_1: no such weights file"),
        (damage, "process_0_of_1: not a complete file"),
        (replace_by_weights, "process_0_of_1: does not continue this recipe: it has no 'newest_update'"),
        (shrink, "process_0_of_1: does not continue this recipe: its queue has 10 buffers of 4 entries"),
    ],
)
def test_a_queue_that_does_not_fit_is_one_line(finished, tmp_path, monkeypatch, capfd, change, message):
    work_dir = tmp_path / "run"
    shutil.copytree(finished, work_dir)
    change(queue_file(work_dir, UPDATES))
    before = files(work_dir)
    arguments = [str(write_recipe(tmp_path)), "--work-dir", str(work_dir), "--resume"]
    monkeypatch.setattr(sys, "argv", ["tools/train.py", *arguments, "--cfg-options", "train_cfg.max_iters=7"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
    errors = capfd.readouterr().err.strip("\n")
    assert stopped.value.code == 2
    assert errors.startswith("error: ") and errors.isprintable()
    assert message in errors
    assert files(work_dir) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.labels_per_update": 17}, "model.labels_per_update: found 17, expected at most the train_dataloader"),
        ({"model.guidance.max_scale": 0.5}, "max_scale is 0.5, below min_scale, 1.0"),
        ({"model.encoders": [], "model.compare_samples": False}, "there is nothing to compare"),
        ({"model.encoders": RECIPE["model"]["encoders"] * 2}, "two encoders have a feature 'norm_x'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as refused:
        run(tmp_path, **overrides)
    assert str(refused.value).isprintable()
    assert not (tmp_path / "run").exists()


def process(rank, recipe, folder):
    """One of two processes that train, and go on from the middle in another folder."""
    torch.set_num_threads(1)
    for name, resume in (("whole", None), ("second_half", str(checkpoint(folder / "whole", 3)))):
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_{name}", rank=rank, world_size=2)
        train(recipe, None, None, TrainOptions(folder / name, resume, "pytorch"))


def test_every_process_has_its_queue(tmp_path):
    recipe, work_dir = write_recipe(tmp_path), tmp_path / "whole"
    # Imports take longer than the training.
    multiprocessing.set_forkserver_preload(["genflow.engine.train", "genflow.engine.hooks", "genflow.engine.runner"])
    torch.multiprocessing.start_processes(process, (recipe, tmp_path), 2, start_method="forkserver")
    assert len(scalars(work_dir)) == UPDATES
    queues = [queue_file(work_dir, UPDATES, rank, processes=2) for rank in range(2)]
    assert {path.name for path in queues} < set(files(work_dir)) and len(files(work_dir)) == 6
    one, other = (kept(path) for path in queues)
    assert not any(torch.equal(*pair) for pair in zip(one[:10], other[:10], strict=True))
    assert scalars(tmp_path / "second_half") == scalars(work_dir)[3:]
    assert same_ends(tmp_path / "second_half", work_dir)
    with pytest.raises(UserError, match=r"step_00000006\.pt: was saved by 2 process\(es\), this run has 1$"):
        train(recipe, {"train_cfg.max_iters": 7}, None, TrainOptions(work_dir, "auto"))
