"""Runs that are killed at any moment, and resumed, equal one that was not: scalars, weights, files, figures.

``GENFLOW_KILLS=64`` kills so many; otherwise a few, with moments that are always the same.
"""

import functools
import json
import os
import random
import signal
import time

import pytest
from tiny_training import start_training

from genflow.weights import read_weights

KILLS = int(os.environ.get("GENFLOW_KILLS", "2"))
OPTIONS = [
    "train_cfg.max_iters=12",
    "default_hooks.checkpoint.interval=3",
    "default_hooks.samples.interval=4",
    "ema.slow={decay: 0.99}",
    "evaluation.per_class=20",
]
start = functools.partial(start_training, options=OPTIONS)


def finish(process):
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said[-3000:]


def wait_for(condition, process):
    deadline = time.monotonic() + 200
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By number of processes: an uninterrupted run, and the seconds from its first update to its end."""

    @functools.cache
    def run(processes):
        work_dir = tmp_path_factory.mktemp("whole") / "run"
        process = start(work_dir, processes=processes)
        wait_for((work_dir / "scalars.jsonl").exists, process)
        began = time.monotonic()
        finish(process)
        return work_dir, time.monotonic() - began

    return run


def same_run(ours, expected):
    lines = [[json.loads(line) for line in (run / "scalars.jsonl").open()] for run in (ours, expected)]
    assert lines[0] == lines[1]
    for name in ("generator.safetensors", "generator-slow.safetensors"):
        weights, others = read_weights(ours / name), read_weights(expected / name)
        assert all(weights[key].equal(others[key]) for key in others)
    figures = [json.loads((run / "metrics.json").read_text()) for run in (ours, expected)]
    assert figures[0]["evaluation"] == figures[1]["evaluation"] and figures[0].keys() == figures[1].keys()
    assert figures[0]["updates"] == 12 and "training" in figures[0]

    def names(run):
        """What a run leaves, but for the console logs, a folder for each start."""
        kept = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
        return sorted(str(path) for path in kept if not path.parts[0][:8].isdigit())

    assert names(ours) == names(expected)
    assert all((ours / name).read_bytes() == (expected / name).read_bytes() for name in names(ours) if "png" in name)


@pytest.mark.parametrize(
    ("processes", "kill"),
    [
        *((1, kill) for kill in range(KILLS)),
        *(pytest.param(2, kill, marks=pytest.mark.slow) for kill in range(-(-KILLS // 4))),
    ],
)
def test_a_killed_run_resumes_to_the_same_end(whole, tmp_path, processes, kill):
    expected, seconds = whole(processes)
    kills = KILLS if processes == 1 else -(-KILLS // 4)
    work_dir = tmp_path / "run"
    process = start(work_dir, processes=processes)
    wait_for((work_dir / "scalars.jsonl").exists, process)
    # Evenly over what follows the first update: training, checkpoints, grids, artifacts, evaluation.
    time.sleep(seconds * (kill + random.Random(kill).random()) / kills)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(work_dir, "--resume", processes=processes))
    same_run(work_dir, expected)
