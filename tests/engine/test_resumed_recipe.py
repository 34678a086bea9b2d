"""What a resumed run trains: its own recipe, changes laid over it and said, changes that break exactness refused."""

import json

import pytest
import torch

from genflow.config.recipe import dump_yaml, load_recipe
from genflow.engine.resume import resumed_recipe, write_given
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.runs.folder import RunFolder
from genflow.weights import read_checkpoint, write_text


@pytest.fixture
def run(tmp_path, tiny_recipe):
    """A folder of a run that was started with overrides, and the file that it was started from."""
    file, folder = tmp_path / "tiny.yaml", RunFolder(tmp_path / "run")
    write_text(file, dump_yaml(tiny_recipe))
    write_given(folder, load_recipe(file))
    started = load_recipe(file, ["optim_wrapper.optimizer.lr=5e-3", "train_cfg.max_iters=7"])
    write_text(folder.recipe_file, dump_yaml(started))
    return folder, file, tiny_recipe


def resumed(run, *overrides, seed=None, allow_change=False):
    folder, file, _ = run
    return resumed_recipe(folder, load_recipe(file), overrides, seed, allow_change)


def test_nothing_said_is_nothing_changed(run):
    recipe, lines = resumed(run)
    assert recipe == load_recipe(run[0].recipe_file) and lines == []
    assert recipe["optim_wrapper"]["optimizer"]["lr"] == 5e-3 and recipe["train_cfg"]["max_iters"] == 7


def test_what_is_given_now_is_laid_over_and_said(run):
    recipe, lines = resumed(run, "train_cfg.max_iters=9", "ema.slow.decay=0.5")
    assert recipe["train_cfg"]["max_iters"] == 9 and recipe["optim_wrapper"]["optimizer"]["lr"] == 5e-3
    assert lines == ["train_cfg.max_iters: 7 in the run, 9 now", "ema.slow.decay: 0.99 in the run, 0.5 now"]


def test_what_was_edited_in_the_file_since_is_laid_over(run):
    _, file, tiny = run
    tiny["optim_wrapper"]["clip_grad_norm"] = 1.0
    del tiny["default_hooks"]
    write_text(file, dump_yaml(tiny))
    recipe, lines = resumed(run)
    assert recipe["optim_wrapper"] == {**tiny["optim_wrapper"], "optimizer": {"type": "AdamW", "lr": 5e-3}}
    assert lines == [
        "optim_wrapper.clip_grad_norm: nothing in the run, 1.0 now",
        "default_hooks: {'samples': {'per_class': 1}} in the run, nothing now",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train_dataloader.batch_size=16", "train_dataloader.batch_size: 8 in the run, 16 now"),
        ("train_dataloader.dataset.split=test", "train_dataloader.dataset.split: 'train' in the run, 'test' now"),
        ("model.noise_std=0.1", "model.noise_std: 0.3 in the run, 0.1 now"),
        ("seed=3", "seed: nothing in the run, 3 now"),
    ],
)
def test_what_breaks_exactness_is_refused_unless_allowed(run, override, line):
    with pytest.raises(UserError) as caught:
        resumed(run, override)
    assert str(caught.value).startswith(f"{run[0]}: cannot go on exactly: {line}; ")
    assert "--allow-change" in str(caught.value)
    assert resumed(run, override, allow_change=True)[1] == [line]


def test_the_seed_of_the_command_line_counts(run):
    with pytest.raises(UserError, match="seed: nothing in the run, 5 now"):
        resumed(run, seed=5)
    assert resumed(run, seed=5, allow_change=True)[0]["seed"] == 5


def test_a_folder_of_before_takes_the_file(run):
    folder, file, tiny = run
    (folder.path / "recipe_as_given.yaml").unlink()
    recipe, lines = resumed(run)
    assert recipe == load_recipe(file) and len(lines) == 2 and recipe["train_cfg"] == tiny["train_cfg"]


SCHEDULES = {
    "WarmupLR": {"warmup_iters": 2},
    "MultiStepLR": {"milestones": [1, 2, 4], "gamma": 0.5},
    "LinearLR": {"start_factor": 0.1, "end": 5},
    "CosineAnnealingLR": {"T_max": 6},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_go_on_as_the_present_recipe_says(tmp_path, tiny_file, name):
    """Any schedule: resumed after two of five updates at another rate, it has the rates of a run of that rate."""
    fixed = ["train_cfg.max_iters=5", "default_hooks.checkpoint={interval: 2, max_keep_ckpts: 9}", "evaluation=null"]
    fixed.append(f"param_scheduler=[{json.dumps({'type': name, **SCHEDULES[name]})}]")
    rate = "optim_wrapper.optimizer.lr=3e-3"
    train(tiny_file, fixed, options=TrainOptions(tmp_path / "one"))
    train(tiny_file, [*fixed, rate], options=TrainOptions(tmp_path / "two"))
    start = tmp_path / "one" / "checkpoints" / "step_00000002.pt"
    train(tiny_file, [rate], options=TrainOptions(tmp_path / "one", resume=str(start)))
    rates = [[json.loads(line)["lr"] for line in (tmp_path / run / "scalars.jsonl").open()] for run in ("one", "two")]
    assert rates[0][2:] == rates[1][2:] and rates[0][1] != rates[1][1]
    assert len(set(rates[1])) > 2


def test_checkpoints_know_the_data_set(tmp_path, tiny_file, monkeypatch):
    from genflow.data.digits import Digits

    run = train(tiny_file, options=TrainOptions(tmp_path / "run"))
    checkpoint = sorted((run / "checkpoints").glob("*.pt"))[-1]
    assert read_checkpoint(checkpoint)["data"]["samples"] == 898
    monkeypatch.setattr(Digits, "__len__", lambda self: 897)
    options = TrainOptions(run, resume="auto")
    with pytest.raises(UserError, match=r"was trained with samples 898, this run has samples 897; --allow-change"):
        train(tiny_file, ["train_cfg.max_iters=4"], options=options)
    changed = TrainOptions(run, resume="auto", allow_change=True)
    assert train(tiny_file, ["train_cfg.max_iters=4"], options=changed) == run
    assert torch.load(sorted((run / "checkpoints").glob("*.pt"))[-1], weights_only=True)["step"] == 4
