"""Signals end training after the update at hand, with a checkpoint and the exit code that a shell expects."""

import functools
import json
import os
import signal
import threading
import time

import pytest
from started import run
from tiny_training import start_training, train_command

from genflow.engine.signals import StopRequest, TrainingStopped, stop_requests
from genflow.weights import read_weights

OPTIONS = ["train_cfg.max_iters=200", "default_hooks.checkpoint.interval=1000", "evaluation=null"]
command = functools.partial(train_command, options=OPTIONS)


def updates(work_dir):
    path = work_dir / "scalars.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def stop(work_dir, number, **more):
    """Start a run, send a signal after its second update, and wait; returns exit code and what it said."""
    process = start_training(work_dir, options=OPTIONS, **more)
    deadline = time.monotonic() + 120
    while updates(work_dir) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("whole") / "run"
    run(command(work_dir), check=True, capture_output=True)
    return work_dir


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow)],
)
def test_a_signal_loses_nothing(uninterrupted, tmp_path, number, code):
    work_dir = tmp_path / "run"
    returned, said = stop(work_dir, number)
    done = updates(work_dir)
    assert returned == code and 2 <= done < 200, said
    checkpoint = work_dir / "checkpoints" / f"step_{done:08d}.pt"
    assert said.splitlines()[-1] == (
        f"stopped by {signal.Signals(number).name} after update {done}: {checkpoint}; --resume goes on"
    )
    assert "Traceback" not in said and not (work_dir / ".running").exists()
    run(command(work_dir, "--resume"), check=True, capture_output=True)
    lines = [[json.loads(line) for line in (run / "scalars.jsonl").open()] for run in (work_dir, uninterrupted)]
    assert lines[0] == lines[1]
    weights = [read_weights(run / "generator.safetensors") for run in (work_dir, uninterrupted)]
    assert all(weights[0][name].equal(value) for name, value in weights[1].items())


@pytest.mark.slow
def test_every_process_ends_after_the_same_update(tmp_path):
    work_dir = tmp_path / "run"
    # torchrun passes it on, and has an exit code of its own.
    _, said = stop(work_dir, signal.SIGTERM, processes=2, torchrun=True)
    done = updates(work_dir)
    assert f"after update {done}" in said and (work_dir / "checkpoints" / f"step_{done:08d}.pt").is_file()


def test_the_first_signal_asks_and_the_second_is_the_systems():
    request = StopRequest()
    with stop_requests(request):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.number == signal.SIGUSR1
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert TrainingStopped(signal.SIGTERM).exit_code == 143


def test_threads_listen_to_nothing():
    def listen():
        with stop_requests(StopRequest()):
            pass

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
