"""Signals end a reproduction in good order: one line, and nothing that trains is left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genflow.reproduction.ablation import Job, train_jobs

ROOT = Path(__file__).parents[2]
TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_stopping import jobs
from genflow.cli.parser import run_tool
from genflow.reproduction.ablation import train_jobs

if __name__ == "__main__":
    run_tool(lambda: train_jobs(jobs(Path({out!r})), 2, lambda done, total: None))
"""


def jobs(out):
    options = ("train_cfg.max_iters=100000", "train_dataloader.batch_size=8", "default_hooks.samples.interval=0")
    recipe = ROOT / "recipes" / "flow_toy.yaml"
    return [Job(recipe, out / str(number), number, options, threads=1) for number in range(4)]


def trains(folder):
    """Whether a process trains in it."""
    return (folder / ".running").exists()


@pytest.mark.slow
def test_a_signal_ends_all_runs_after_their_update(tmp_path):
    script = tmp_path / "reproduce.py"
    script.write_text(TRAIN.format(folder=str(Path(__file__).parent), out=str(tmp_path)))
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not all((tmp_path / run / "scalars.jsonl").exists() for run in "01"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert said == "stopped by SIGTERM; the runs keep what they have, and the same command goes on\n"
    for run in "01":
        assert len(list((tmp_path / run / "checkpoints").glob("step_*.pt"))) == 1 and not trains(tmp_path / run)
    assert not (tmp_path / "2" / "scalars.jsonl").exists() and not (tmp_path / "3" / "scalars.jsonl").exists()


def test_a_finished_list_is_finished(tmp_path):
    options = ("train_cfg.max_iters=2", "train_dataloader.batch_size=8")
    job = Job(ROOT / "recipes" / "flow_toy.yaml", tmp_path / "run", 0, options, threads=1)
    for _ in range(2):
        done = []
        train_jobs([job], 1, lambda *figures, done=done: done.append(figures))
        assert done == [(1, 1)]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
