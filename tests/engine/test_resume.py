"""Kill and resume: what follows equals the uninterrupted run to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from started import Started, run

from genflow.weights import read_checkpoint, read_weights

ROOT = Path(__file__).parents[2]
UPDATES = 12
OPTIONS = [
    f"train_cfg.max_iters={UPDATES}",
    "train_dataloader.batch_size=16",
    "default_hooks.checkpoint.interval=4",
    "default_hooks.checkpoint.max_keep_ckpts=10",
    "default_hooks.samples.per_class=1",
    "model.flow.width=16",
    "model.flow.head_width=8",
    "model.flow.blocks=2",
    "model.flow.layers=1",
    "ema.slow={decay: 0.99}",
    "evaluation=null",
]


def command(work_dir, *more):
    recipe = ROOT / "recipes" / "itarflow_digits.yaml"
    base = [sys.executable, str(ROOT / "tools" / "train.py"), str(recipe), "--work-dir", str(work_dir)]
    return [*base, *more, "--cfg-options", *OPTIONS]


def scalars(work_dir):
    path = work_dir / "scalars.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("whole") / "run"
    run(command(work_dir), check=True, capture_output=True)
    return work_dir


def test_kill_and_resume_is_exact_to_the_last_bit(uninterrupted, tmp_path):
    work_dir = tmp_path / "run"
    process = Started(command(work_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(work_dir.glob("checkpoints/step_*.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(scalars(work_dir))
    assert done >= 4, "killed before the first checkpoint"
    assert not (work_dir / "generator.safetensors").exists(), "finished before the kill"
    # What a kill in the middle of a write leaves behind must not matter.
    with open(work_dir / "scalars.jsonl", "a") as file:
        file.write('{"step": 13, "lo')
    (work_dir / "checkpoints" / ".step_00000012.pt.x3_k9fq0.partial").write_bytes(b"half")

    run(command(work_dir, "--resume"), check=True, capture_output=True)
    assert not list(work_dir.glob("checkpoints/.*.partial"))
    assert scalars(work_dir) == scalars(uninterrupted)
    assert [entry["step"] for entry in scalars(work_dir)] == list(range(1, UPDATES + 1))
    for name in ("generator.safetensors", "generator-slow.safetensors"):
        ours, expected = read_weights(work_dir / name), read_weights(uninterrupted / name)
        assert all(ours[key].equal(expected[key]) for key in expected)
    last = "checkpoints/step_00000012.pt"
    ours, expected = read_checkpoint(work_dir / last), read_checkpoint(uninterrupted / last)
    assert all(ours["model"][key].equal(expected["model"][key]) for key in expected["model"])
    assert ours["schedulers"] == expected["schedulers"]
    for index, state in expected["optimizer"]["state"].items():
        assert all(ours["optimizer"]["state"][index][key].equal(value) for key, value in state.items())


def test_resume_from_a_named_checkpoint(uninterrupted, tmp_path):
    work_dir = tmp_path / "run"
    start = uninterrupted / "checkpoints" / "step_00000008.pt"
    run(command(work_dir, "--resume", str(start)), check=True, capture_output=True)
    assert scalars(work_dir) == scalars(uninterrupted)[8:]


def test_another_seed_is_another_run(uninterrupted, tmp_path):
    work_dir = tmp_path / "run"
    run(command(work_dir, "--seed", "1"), check=True, capture_output=True)
    assert scalars(work_dir)[0]["loss"] != scalars(uninterrupted)[0]["loss"]
    start = uninterrupted / "checkpoints" / "step_00000008.pt"
    refused = run(
        command(tmp_path / "other", "--seed", "1", "--resume", str(start)), check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "cannot go on exactly: seed: nothing in the run, 1 now" in refused.stderr
