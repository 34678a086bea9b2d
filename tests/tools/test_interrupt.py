"""Ctrl-C while a tool starts, and what it needs loads, ends it without a traceback."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = sorted((Path(__file__).parents[2] / "tools").glob("*.py"))
# The signal arrives in the middle of the first import of the package, whatever the machine's speed.
INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "genflow.cli.parser":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_ctrl_c_while_packages_load(tool):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, tool], check=False, capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT) and "Traceback" not in done.stderr
