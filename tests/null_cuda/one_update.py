"""Updates and a sampling of a recipe on the null device, which this process must have been started with.

Prints a JSON line for each recipe: launches and synchronisations of the last update, where these come from, peak
memory, launches of a sampling. Weights and data on the device are zeros, and convolutions take torch's own kernels, not
cuDNN's.
"""

import argparse
import ctypes
import importlib
import inspect
import json
import os
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# mmengine asks while it is imported, and torch then forbids children of this process to use the device.
torch.cuda.is_available = lambda: True

import genflow  # noqa: E402
from genflow.benchmarks.updates import Updating, load_share  # noqa: E402
from genflow.engine.loop import UpdateLoop  # noqa: E402

_OURS = (str(Path(genflow.__file__).parent), str(Path(__file__).with_name("planted.py")))


class TrueConditions(TorchFunctionMode):
    """Data are zeros, so that every check of finite numbers would fail; they still wait for the device."""

    def __torch_function__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        result = function(*arguments, **(options or {}))
        return True if function is torch.Tensor.__bool__ and arguments[0].is_cuda else result


def _figures_read() -> str:
    """Where the loop reads an update's figures, the one place where it waits."""
    lines, first = inspect.getsourcelines(UpdateLoop.update_on)
    return f"loop.py:{first + next(number for number, line in enumerate(lines) if '.tolist()' in line)}"


class Waits:
    """Where torch says that the host waits for the device."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()

    def __enter__(self) -> "Waits":
        torch.cuda.set_sync_debug_mode("warn")
        self._show, warnings.showwarning = warnings.showwarning, self._note
        warnings.simplefilter("always")
        return self

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = self._show

    def _note(self, message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" not in str(message):
            return
        place = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_OURS)][-1]
        self.places[f"{Path(place.filename).name}:{place.lineno}"] += 1


def run(path: str, overrides: list[str], processes: int, updates: int, sample: bool) -> dict[str, Any]:
    """Train and sample; see the module."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    counts = ctypes.CDLL(None)
    training = Updating(load_share(path, overrides, processes), torch.device("cuda"))
    torch.cuda.reset_peak_memory_stats()
    with TrueConditions():
        for _ in range(updates):
            batch = training.read()
            before = counts.null_cuda_launches(), counts.null_cuda_synchronisations()
            with Waits() as waits:
                training.update(batch)
            launches = counts.null_cuda_launches() - before[0]
            waited = counts.null_cuda_synchronisations() - before[1]
        report = {
            "recipe": path,
            "launches": launches,
            "synchronisations": waited,
            "waits": dict(waits.places),
            "figures_read": _figures_read(),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
        generator = training.method.generator
        if sample and generator is not None:
            before = counts.null_cuda_launches()
            with Waits() as waits:
                generator.sample(torch.arange(2), 0)
            report |= {"sample_launches": counts.null_cuda_launches() - before, "sample_waits": dict(waits.places)}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--cfg-options", nargs="*", default=[])
    parser.add_argument("--import", dest="imports", nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--no-sample", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.imports:
        importlib.import_module(name)
    options = (arguments.processes, arguments.updates, not arguments.no_sample)
    # A process each, which is quick once the imports are done: peaks and counts are a recipe's own.
    failed = False
    for recipe in arguments.recipes:
        child = os.fork()  # a real device would not survive it
        if not child:
            try:
                print(json.dumps(run(recipe, arguments.cfg_options, *options)), flush=True)
            except BaseException:
                print(json.dumps({"recipe": recipe, "error": traceback.format_exc()}), flush=True)
                os._exit(1)
            os._exit(0)
        failed |= os.waitpid(child, 0)[1] != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
