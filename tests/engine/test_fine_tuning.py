"""``init_from``: weights of another run where names and shapes fit, and a report of the rest."""

import pytest

from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.weights import read_weights, write_weights


def start(tiny_file, folder, source, *options):
    return train(tiny_file, [f"init_from={source}", "evaluation=null", *options], options=TrainOptions(folder))


def test_a_new_schedule_from_old_weights(tiny_file, finished_run, tmp_path, capsys):
    still = ["train_cfg.max_iters=1", "optim_wrapper.optimizer={type: SGD, lr: 0.0}", "ema={}"]
    run = start(tiny_file, tmp_path / "run", finished_run, *still)
    old, new = (read_weights(folder / "generator.safetensors") for folder in (finished_run, run))
    assert all(new[name].equal(value) for name, value in old.items())
    assert f"init_from {finished_run}: {len(old)} of {len(old)} tensors taken" in capsys.readouterr().out


def test_what_does_not_fit_is_left_out_and_said(tiny_file, finished_run, tmp_path, capsys):
    state = read_weights(finished_run / "generator.safetensors")
    table = "flow_blocks.0.classes.table"
    shape = tuple(state[table].shape)
    changed = {**{name: value for name, value in state.items() if name != "flow_blocks.1.prefix"}, "more": state[table]}
    changed[table] = state[table][:4]
    write_weights(tmp_path / "other.safetensors", changed)
    still = ["train_cfg.max_iters=1", "optim_wrapper.optimizer={type: SGD, lr: 0.0}", "ema={}"]
    run = start(tiny_file, tmp_path / "run", tmp_path / "other.safetensors", *still)
    said = capsys.readouterr().out
    assert f"{len(state) - 2} of {len(state)} tensors taken" in said
    assert f"not taken: {table}: {(4, *shape[1:])} there, {shape} here" in said
    assert "not taken: flow_blocks.1.prefix: missing there," in said and f"more: {shape} there, missing here" in said
    new = read_weights(run / "generator.safetensors")
    assert not new[table][:4].equal(state[table][:4]) and new["flow_blocks.0.out.weight"].equal(
        state["flow_blocks.0.out.weight"]
    )


def test_a_resumed_run_does_not_start_anew(tiny_file, finished_run, tmp_path, capsys):
    run = start(tiny_file, tmp_path / "run", finished_run)
    capsys.readouterr()
    train(tiny_file, ["train_cfg.max_iters=4"], options=TrainOptions(run, resume="auto"))
    assert "tensors taken" not in capsys.readouterr().out


@pytest.mark.parametrize("case", ["missing", "foreign"])
def test_a_source_that_gives_nothing_is_refused(tiny_file, tmp_path, case):
    source, message = tmp_path / "nowhere.safetensors", "no such weights file"
    if case == "foreign":
        import torch

        write_weights(source, {"x": torch.zeros(3)})
        message = "has no weights of the names and shapes of MaximumLikelihood's"
    with pytest.raises(UserError, match=message):
        start(tiny_file, tmp_path / "run", source)
    assert not (tmp_path / "run").exists()
