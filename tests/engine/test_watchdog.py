"""A stalled update is said, with the process that the others wait for."""

import re
import sys
import time
from pathlib import Path

from started import run

from genflow.engine.watchdog import BACKWARD, WAITING, Watchdog

ROOT = Path(__file__).parents[2]
SLEEPER = '''
import os, time
from genflow.data.digits import Digits
from genflow.registry import DATASETS


@DATASETS.register_module()
class SleepingDigits(Digits):
    """The second process falls asleep while it reads the third update."""

    def batch(self, indices, draws):
        if os.environ.get("RANK") == "1" and int(draws.positions[0]) >= 2 * 8:
            time.sleep(4 if int(draws.positions[0]) < 3 * 8 else 0)
        return super().batch(indices, draws)
'''


def test_one_process_speaks_once_per_stall(capfd):
    with Watchdog(0.2) as watchdog:
        watchdog.note(4, BACKWARD)
        time.sleep(0.7)
        watchdog.pause()
        time.sleep(0.5)
        watchdog.note(5, WAITING)
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["update 5 has not ended after 0.2 s: process 0 of 1 is computing gradients"]


def test_quick_updates_are_silent(capfd):
    with Watchdog(5.0) as watchdog:
        watchdog.note(0, WAITING)
    assert capfd.readouterr().err == ""


def test_the_process_that_stalls_is_named(tmp_path):
    (tmp_path / "sleeping.py").write_text(SLEEPER)
    (tmp_path / "sleeping.yaml").write_text(f"_base_: {ROOT}/recipes/itarflow_digits.yaml\n")
    options = [
        "custom_imports=[sleeping]",
        "train_dataloader={dataset: {type: SleepingDigits}, batch_size: 8}",
        "train_cfg={max_iters: 4, stall_seconds: 1.0}",
        *(f"model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
        "evaluation=null",
    ]
    command = [sys.executable, ROOT / "tools" / "train.py", tmp_path / "sleeping.yaml", "--work-dir", tmp_path / "run"]
    done = run([*command, "--cfg-options", *options], processes=2, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    stalls = re.findall(r"update (\d+) has not ended after 1 s: process (\d) of 2 is ([\w ]+)", done.stderr)
    assert stalls == [("3", "1", "waiting for data")]
