"""Updates and a sampling of a recipe on the null device, which this process must have been started with.

Prints a JSON line for each recipe: launches and synchronisations of the last update, where these come from, peak
memory, launches of a sampling. Weights are zeros that nobody reads, data are zeros, and convolutions take torch's own
kernels, not cuDNN's.
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
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# mmengine asks while it is imported, and torch then forbids children of this process to use the device.
torch.cuda.is_available = lambda: True

import genflow  # noqa: E402
from genflow.codecs.base import Codec  # noqa: E402
from genflow.config.graph import ComponentGraph  # noqa: E402
from genflow.config.recipe import load_recipe  # noqa: E402
from genflow.data.base import Dataset  # noqa: E402
from genflow.data.stream import build_loader  # noqa: E402
from genflow.draws import Draws  # noqa: E402
from genflow.engine.averages import WeightAverage  # noqa: E402
from genflow.engine.layers import apply_layer_settings  # noqa: E402
from genflow.engine.loop import AutocastOptimWrapper, UpdateLoop  # noqa: E402
from genflow.engine.optimizer import build_optimizer  # noqa: E402
from genflow.feature_encoders.base import FeatureEncoder  # noqa: E402
from genflow.registry import DATASETS  # noqa: E402

_OURS = (str(Path(genflow.__file__).parent), str(Path(__file__).with_name("planted.py")))


@DATASETS.register_module()
class Blank(Dataset):
    """Zeros of a shape, of any class in turn."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes

    def __len__(self) -> int:
        return 100_000

    def batch(self, indices: torch.Tensor, draws: Draws | None) -> dict[str, torch.Tensor]:
        return {"images": torch.zeros(len(indices), *self.image_shape), "labels": indices % max(1, self.num_classes)}


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


def _recipe(path: str, overrides: list[str], processes: int) -> dict[str, Any]:
    """A recipe that reads blank data, and the share of its batch that one of so many processes has."""
    recipe = load_recipe(path, overrides)
    data, model = recipe["train_dataloader"], recipe["model"]
    dataset = data["dataset"]
    if "data_root" in dataset:
        side = dataset.get("image_size")
        shape = dataset.get("latent_shape") or [dataset.get("channels", 3), side, side]
        classes = dataset.get("num_classes", 1000)
        data["dataset"] = {"type": "Blank", "image_shape": list(shape), "num_classes": classes}
    data["batch_size"] //= processes
    if "labels_per_update" in model:
        model["labels_per_update"] //= processes
    recipe["evaluation"] = None
    return recipe


def _method(graph: ComponentGraph) -> Any:
    """As a training builds it, but that nobody draws initial weights or reads those of files."""
    FeatureEncoder.require_weights = lambda *_: None
    for name in ("uniform", "normal", "trunc_normal", "xavier_uniform", "xavier_normal", "kaiming_uniform"):
        setattr(torch.nn.init, f"{name}_", lambda tensor, *_, **__: tensor)

    def weights(name: str) -> dict[str, torch.Tensor]:
        state = graph.prerequisites[name].graph.build_artifact().state_dict()
        return {key: torch.empty(value.shape, dtype=value.dtype) for key, value in state.items()}

    method = graph.build(weights)
    for module in method.modules():
        if isinstance(module, Codec) and not module.can_decode:
            module.randomize()
    return method.to("cuda")


def run(path: str, overrides: list[str], processes: int, updates: int, sample: bool) -> dict[str, Any]:
    """Train and sample; see the module."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    counts = ctypes.CDLL(None)
    graph = ComponentGraph.from_recipe(_recipe(path, overrides, processes), path)
    section, optim = graph.section("train_cfg"), graph.section("optim_wrapper")
    with TrueConditions():
        method = _method(graph)
        method.train()
        apply_layer_settings(method, section)
        optimizer = AutocastOptimWrapper(build_optimizer(optim, method), optim.precision, optim.clip_grad_norm)
        averages = [WeightAverage(method.trained_parameters(), rule) for rule in graph.section("ema").values()]
        data = graph.section("train_dataloader")
        loader = build_loader(data.dataset, data.batch_size, 0)
        nobody = SimpleNamespace(note=lambda *_: None)
        runner = SimpleNamespace(model=method, optim_wrapper=optimizer, watchdog=nobody, stop=SimpleNamespace(number=0))
        loop = UpdateLoop(runner, loader, section, 0)
        batches = iter(loader)
        for _ in range(updates):
            batch = next(batches)
            before = counts.null_cuda_launches(), counts.null_cuda_synchronisations()
            with Waits() as waits:
                loop.update(batch)
                for average in averages:
                    average.update(method.trained_parameters(), 1, data.batch_size)
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
        if sample and method.generator is not None:
            before = counts.null_cuda_launches()
            with Waits() as waits:
                method.generator.sample(torch.arange(2), 0)
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
