"""The process of one entry of the suite: ``python -m genflow.benchmarks.suite_entry JSON``.

An entry that takes the device with it, hangs, or leaves memory behind harms no other.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from genflow.benchmarks.work import NothingToMeasure, Work
from genflow.errors import reason


def measure(target: str, arguments: dict[str, Any], work: Work) -> int:
    """Run a function on an entry's work; returns the exit code, after the outcome was written.

    Args:
        target: ``module:function``.
        arguments: of the function, beside the work.
        work: what it is given.
    """
    module, _, name = target.partition(":")
    try:
        getattr(import_module(module), name)(work, **arguments)
    except NothingToMeasure as error:
        work.write(skipped=str(error))
    except Exception as error:
        traceback.print_exc()
        work.write(error=reason(error))
        return 1
    else:
        work.write(done=True)
    return 0


def _end_with_the_suite() -> None:
    """End this process and those that it started, once the suite that started it has gone, whatever became of it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    if os.getpgid(0) == os.getpid():  # a group of its own
        threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    _end_with_the_suite()
    given = json.loads(sys.argv[1])
    places = {name: Path(given[name]) for name in ("recipes", "folder")}
    work = Work(torch.device(given["device"]), seconds=given["seconds"], **places)
    sys.exit(measure(given["target"], given["arguments"], work))


if __name__ == "__main__":
    main()
