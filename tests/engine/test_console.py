"""What a training shows: its lines, the share of a GPU's rate, and a bar on a terminal."""

import os
import pty
import re
import sys
import threading

import pytest
import torch

from genflow.config.graph import ComponentGraph
from genflow.engine import console
from genflow.engine.train import TrainOptions, train
from genflow.engine.update_cost import count_updates

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def log(run):
    return "".join(path.read_text() for path in run.glob("*/*.log"))


def test_the_share_of_the_rate_is_the_updates_own_arithmetic(tiny_file, tmp_path, monkeypatch):
    graph = ComponentGraph.load(tiny_file)
    assert console.seconds_of_update_at_peak(graph, graph.build()) is None  # a CPU
    monkeypatch.setattr(console, "training_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    seconds = console.seconds_of_update_at_peak(graph, graph.build())
    cost = count_updates(graph, [1], 1)[1]
    macs = cost.forward.total + cost.backward.total + cost.optimizer.total
    assert macs > 0 and seconds == 2 * macs / 30.3e12

    monkeypatch.setattr(console, "CHIPS", {})
    assert console.seconds_of_update_at_peak(graph, graph.build()) is None  # an unknown GPU


def test_a_line_shows_speed_and_share(tiny_file, tmp_path, monkeypatch):
    monkeypatch.setattr("genflow.engine.hooks.seconds_of_update_at_peak", lambda graph, method: 1.0)
    run = train(tiny_file, {"evaluation": None}, None, TrainOptions(tmp_path / "run"))
    lines = [line for line in log(run).splitlines() if "Iter(train)" in line]
    assert len(lines) == 2
    for line in lines:
        seconds, speed, share = re.search(r" time: (\S+) .*images/s: (\S+)  of the GPU's peak: (\S+)%$", line).groups()
        assert 100 / float(share) == pytest.approx(float(seconds), rel=0.05, abs=1e-4)
        assert 8 / float(speed) == pytest.approx(float(seconds), rel=0.05, abs=1e-4)
        assert "eta: " in line


def test_a_terminal_shows_a_bar_and_whole_lines_above_it(tiny_file, tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    shown = []

    def read():
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                return
            shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "xterm")
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        options = {"train_cfg.max_iters": 40, "default_hooks.logger.interval": 10, "evaluation": None}
        run = train(tiny_file, options, None, TrainOptions(tmp_path / "run"))
        assert sys.stdout is terminal
        monkeypatch.undo()
    reader.join(timeout=10)
    os.close(ours)
    text = b"".join(shown).decode()
    assert re.search(r"ETA.*images/s  loss \d", text) and "40/40" in text
    # On a screen a carriage return starts the line anew.
    lines = [line.rsplit("\r", 1)[-1] for line in _CONTROL.sub("", text).replace("\r\n", "\n").split("\n")]
    logged = log(run).splitlines()
    steps = [line.split(" - INFO - ")[1] for line in logged if "Iter(train)" in line]
    assert len(steps) == 5  # the first one, and every tenth
    for step in steps:
        whole = re.compile(rf"[0-9/: ]+ - mmengine - INFO - {re.escape(step)} *")
        assert sum(whole.fullmatch(line) is not None for line in lines) == 1, step
    assert "\x1b" not in "".join(logged) and "ETA" not in "".join(logged)
