"""What a recipe asks of this machine, from plain numbers, before anything large is built."""

import math
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import nn

from genflow.config.graph import ComponentGraph
from genflow.config.sections import LoaderSection
from genflow.draws import Draws
from genflow.errors import UserError, reason
from genflow.generators.base import Generator
from genflow.methods.base import Method

#: Loader processes for each core; more only wait for each other.
_WORKERS_PER_CORE = 4
_FLOAT = 4
#: Batches that torch's loader keeps ready in every process of its own.
_PREFETCHED = 2
#: How many times less than on the meta device is kept for a backward pass, where attention is fused and types are
#: narrower; and how many times less again without one.
UNFUSED, _GRADIENTS = 8, 4
#: Of a position in the stream of samples: an integer and its place in a list.
_POSITION = 40


def check_loader(graph: ComponentGraph) -> None:
    """See that there are not more loader processes than the machine can run.

    Raises:
        UserError: more than four for each core.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = graph.section("train_dataloader").num_workers
    most = _WORKERS_PER_CORE * cores
    if workers > most:
        expected = f"expected at most {most}, {_WORKERS_PER_CORE} for each of this machine's {cores} cores"
        raise UserError(f"{graph.source}: train_dataloader.num_workers: found {workers}, {expected}")


def check_memory(graph: ComponentGraph, method: Method, data: LoaderSection, objects: Mapping[str, Any]) -> None:
    """See that what a recipe asks for fits this machine, each number by itself; all of them may still not.

    Args:
        graph: the recipe.
        method: on the meta device.
        data: the recipe's.
        objects: the method's components by their places in the recipe.

    Raises:
        UserError: something needs more memory than there is; names the entry and the estimate.
    """
    parts = graph.section("train_cfg").micro_batches
    if parts > data.batch_size:
        expected = f"expected at most the train_dataloader.batch_size, {data.batch_size}"
        raise UserError(f"{graph.source}: train_cfg.micro_batches: found {parts}, {expected}")
    refuse_beyond_memory(graph.source, _estimates(graph, method, data, objects))


def _largest(method: Method, objects: Mapping[str, Any]) -> str:
    """The place of the innermost component that has more than half of all parameters."""
    counts = {path: _parameters(module) for path, module in objects.items() if isinstance(module, nn.Module)}
    return max((path for path, count in counts.items() if 2 * count > _parameters(method)), key=len, default="model")


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _estimates(
    graph: ComponentGraph, method: Method, data: LoaderSection, objects: Mapping[str, Any]
) -> dict[str, int]:
    """Bytes of a process by the entry of the recipe that asks for them."""
    sample, rows = math.prod(data.dataset.image_shape) * _FLOAT, -(-data.batch_size // get_world_size())
    trained = sum(parameter.numel() for parameter in method.trained_parameters().values())
    every = _parameters(method)
    copies = 2 + len(graph.section("ema"))  # weights, gradients, averages
    section = graph.section("train_cfg")
    parts = section.micro_batches * get_world_size()
    holders = 1 if section.sharding is None else section.sharding.over or get_world_size()
    batches = (1 + _PREFETCHED * data.num_workers) * rows
    found = {
        f"train_dataloader.batch_size: found {data.batch_size}, which": batches * (sample + _POSITION),
        f"{_largest(method, objects)}: it": (every + trained * (copies - 1) // holders) * _FLOAT,
        **asked_for(graph, method, parts, objects),
    }
    if method.generator is not None:
        grid, shown = graph.section("default_hooks").samples, math.prod(method.generator.codec.latent_shape) * _FLOAT
        classes = min(grid.classes, method.generator.num_classes) or 1
        found[f"default_hooks.samples.per_class: found {grid.per_class}, which"] = grid.per_class * classes * shown
        evaluator = graph.section("evaluation")
        if evaluator is not None and evaluator.holds_images:
            found[f"evaluation: its {evaluator.num_samples} samples"] = evaluator.num_samples * shown
    return found


def failed_update(graph: ComponentGraph, error: Exception, objects: Mapping[str, Any]) -> UserError:
    """The one line for a method that fails, with the innermost of its components that was at work."""
    places = {id(component): path for path, component in objects.items()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    at_work = [places[key] for key in (id(frame.f_locals.get("self")) for frame in frames) if key in places]
    place = at_work[-1] if at_work else "model"
    return UserError(f"{graph.source}: {place}: its first update would fail: {reason(error)}")


def is_mistake(error: Exception) -> bool:
    """Whether a failure on the meta device is one everywhere, as far as can be said."""
    known = isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, NotImplementedError)
    return known and "meta" not in str(error).lower()


def asked_for(graph: ComponentGraph, method: Method, parts: int, objects: Mapping[str, Any]) -> dict[str, int]:
    """What a method says that it needs, see :meth:`~genflow.methods.base.Method.memory`, by entry.

    Raises:
        UserError: its components do not fit each other.
    """
    try:
        return {f"model.{name}: it": count for name, count in method.memory(parts).items()}
    except Exception as error:  # whatever a component does
        if is_mistake(error):
            raise failed_update(graph, error, objects) from error
    return {}


def check_activations(graph: ComponentGraph, saved: int, rows: int) -> None:
    """See that a micro-batch fits, as far as its activations say, unless a setting changes what is kept of them.

    Args:
        graph: the recipe.
        saved: bytes that a row of a batch keeps for the backward pass, see :func:`saved_bytes`.
        rows: of an update, over all processes.

    Raises:
        UserError: they need more memory than there is.
    """
    training = graph.section("train_cfg")
    refuse_beyond_memory(graph.source, {"model: a single sample, whose activations": saved}, "take a smaller model")
    if not (training.checkpointing or training.compile):
        part = -(-rows // (training.micro_batches * get_world_size()))
        entry = f"train_cfg.micro_batches: found {training.micro_batches}, of which each, {part} rows of activations,"
        refuse_beyond_memory(graph.source, {entry: saved * part}, "take more")


def check_network(graph: ComponentGraph, method: Method, data: LoaderSection) -> int:
    """See that the batches of the generator's network fit: of training, of the sample grid and of the evaluation.

    Returns:
        the bytes that the backward pass of one evaluation needs for a sample, on the meta device; 0 where that cannot
        be said.

    Raises:
        UserError: one needs more memory than there is.
    """
    generator = method.generator
    saved = 0 if generator is None else _network_bytes(generator)
    check_activations(graph, saved // UNFUSED, data.batch_size)
    if generator is not None:
        grid, evaluator = graph.section("default_hooks").samples, graph.section("evaluation")
        count = grid.per_class * (min(grid.classes, generator.num_classes) or 1)
        batches = {f"default_hooks.samples.per_class: found {grid.per_class}, whose grid": count}
        if hasattr(evaluator, "batch_size"):
            count = min(evaluator.batch_size, evaluator.num_samples)
            batches[f"evaluation.batch_size: found {evaluator.batch_size}, of which each batch"] = count
        sizes = {entry: count * saved // (UNFUSED * _GRADIENTS) for entry, count in batches.items()}
        refuse_beyond_memory(graph.source, sizes)
    return saved


def _network_bytes(generator: Generator) -> int:
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    try:
        with saved_bytes(generator) as saved:
            generator.evaluate(*generator.draw(Draws(0, label), label))
    except Exception:  # whatever the meta device cannot do
        return 0
    return saved[0]


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Counts, in the one entry of a list, the bytes that autograd keeps within, beside the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}
    count = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in kept:
            kept[storage._cdata] = storage  # alive, so that its place is not used again
            count[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield count


def refuse_beyond_memory(source: str, estimates: Mapping[str, int], remedy: str = "take less") -> None:
    """Raise for what cannot fit.

    Args:
        source: the recipe, for the message.
        estimates: bytes by entry.
        remedy: what to do about it.

    Raises:
        UserError: the largest is above :func:`machine_memory`.
    """
    entry, size = max(estimates.items(), key=lambda item: item[1], default=("", 0))
    limit = machine_memory()
    if size > limit:
        estimate = f"needs an estimated {_gigabytes(size)}, this machine has {_gigabytes(limit)}"
        raise UserError(f"{source}: {entry} {estimate}; {remedy}")


def machine_memory() -> int:
    """Bytes of memory that a process may have at all: the machine's or its container's, and that of the GPUs."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # there is none, or it is "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    gpus = range(torch.cuda.device_count())
    return memory + sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:.1f} GB"
