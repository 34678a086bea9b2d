"""Files of checkpoints: exact names, damage passed over, what a kill leaves, nothing of anybody's removed or lost."""

import os

import pytest
import torch

from genflow.engine.checkpoint import find_checkpoints, newest_readable, remove_checkpoint, set_aside_later
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.weights import write_checkpoint

CHECKPOINT = {
    "format": 1,
    "seed": 0,
    "model": {"w": torch.ones(500)},
    "optimizer": {},
    "schedulers": [],
    "averages": {},
}


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of a run of two processes with queues, after 4, 8 and 12 updates, and files of somebody."""
    path = tmp_path / "checkpoints"
    for step in (4, 8, 12):
        for rank in (0, 1):
            write_checkpoint(path / f"step_{step:08d}.process_{rank}_of_2", {"queue": torch.ones(500)})
        write_checkpoint(path / f"step_{step:08d}.pt", {**CHECKPOINT, "step": step})
    for name in OTHERS:
        (path / name).write_bytes(b"mine")
    return path


OTHERS = {"step_00000008_mine.pt", "step_best.pt", "step_00000012.process_a_of_2", "step_00000003.process_notes"}


def ours(folder):
    return sorted(set(os.listdir(folder)) - OTHERS)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_rotation_touches_files_of_exact_names_only(folder):
    for path in find_checkpoints(folder.parent):
        remove_checkpoint(path)
    assert set(os.listdir(folder)) == OTHERS


@pytest.mark.parametrize("damaged", ["step_00000012.pt", "step_00000012.process_1_of_2"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-100])], ids=["bit", "cut"])
def test_a_broken_newest_checkpoint_is_passed_over(folder, damaged, damage, capsys):
    damage(folder / damaged)
    assert newest_readable(folder.parent) == folder / "step_00000008.pt"
    said = capsys.readouterr().out
    assert said.startswith(f"warning: passed over: {folder / damaged}: not a complete ") and said.count("\n") == 1
    set_aside_later(folder.parent, 8)  # nothing is lost
    assert {f"abandoned_{damaged}", "step_00000008.pt"} <= set(os.listdir(folder))
    assert newest_readable(folder.parent) == folder / "step_00000008.pt"
    assert not capsys.readouterr().out


def test_if_every_checkpoint_is_broken_the_newest_is_named(folder):
    for path in find_checkpoints(folder.parent):
        flip(path)
    with pytest.raises(UserError, match=r"step_00000012\.pt: not a complete checkpoint"):
        newest_readable(folder.parent)
    assert newest_readable(folder) is None


def test_abandoned_checkpoints_are_never_overwritten(folder):
    kept = {name: (folder / name).read_bytes() for name in ours(folder)}
    set_aside_later(folder.parent, 8)
    for name in kept:  # done again, and abandoned again
        if "12" in name:
            write_checkpoint(folder / name, {**CHECKPOINT, "step": 12})
    set_aside_later(folder.parent, 8)
    later = [name for name in kept if "12" in name]
    assert all((folder / f"abandoned_{name}").read_bytes() == kept[name] for name in later)
    assert all((folder / f"abandoned_2_{name}").is_file() for name in later)
    assert ours(folder) == sorted(
        [name for name in kept if "12" not in name]
        + [f"abandoned_{number}{name}" for name in later for number in ("", "2_")]
    )
    assert set(os.listdir(folder)) >= OTHERS


def test_what_a_kill_leaves_is_removed_by_the_next_start(folder):
    before = ours(folder)
    for name in ("step_00000016.process_0_of_2", "step_00000002.process_1_of_2", ".step_00000016.pt.abcd_123.partial"):
        (folder / name).write_bytes(b"large")
    set_aside_later(folder.parent, 12)
    assert ours(folder) == before


def test_resume_passes_over_the_broken_newest_and_comes_to_the_same_end(tiny_file, finished_run, tmp_path, capsys):
    overrides = {"default_hooks.checkpoint.interval": 1, "evaluation": None}
    run = train(tiny_file, overrides, options=TrainOptions(tmp_path / "run"))
    expected = (run / "generator.safetensors").read_bytes()
    assert expected == (finished_run / "generator.safetensors").read_bytes()
    for name in ("step_best.pt", "step_00000002_mine.pt"):
        (run / "checkpoints" / name).write_bytes(b"mine")
    (run / "generator.safetensors").unlink()
    flip(run / "checkpoints" / "step_00000003.pt")
    capsys.readouterr()
    train(tiny_file, overrides, options=TrainOptions(run, "auto"))
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: passed over")]
    assert len(warnings) == 1 and "step_00000003.pt: not a complete checkpoint" in warnings[0]
    assert (run / "generator.safetensors").read_bytes() == expected
    assert sorted(os.listdir(run / "checkpoints")) == [
        "abandoned_step_00000003.pt",
        "step_00000002.pt",
        "step_00000002_mine.pt",
        "step_00000003.pt",
        "step_best.pt",
    ]
    flip(run / "checkpoints" / "step_00000002.pt")
    with pytest.raises(UserError, match=r"step_00000002\.pt: not a complete checkpoint"):  # it was asked for
        train(tiny_file, overrides, options=TrainOptions(run, str(run / "checkpoints" / "step_00000002.pt")))
