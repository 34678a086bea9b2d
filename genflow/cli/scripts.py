"""How a command starts: ``python tools/sample.py`` in a checkout, ``genflow-sample`` where the package is installed."""

import signal
import sys
from importlib import import_module
from pathlib import Path


def run_command(name: str) -> None:
    """Run ``main`` of ``genflow/commands/<name>.py``; a user's mistake is one line and exit code 2."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while packages load ends without a traceback
    from genflow.cli.parser import run_tool

    run_tool(import_module(f"genflow.commands.{name}").main)


def run_script() -> None:
    """What the console scripts call: ``genflow-analyze-flops`` is the command ``analyze_flops``."""
    run_command(Path(sys.argv[0]).stem.removeprefix("genflow-").replace("-", "_"))
