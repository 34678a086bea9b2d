"""An update before the first: what a recipe would stumble over after its prerequisites have trained for hours."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor

from genflow.config.graph import ComponentGraph
from genflow.config.sections import LoaderSection
from genflow.draws import Draws
from genflow.engine.distributed import training_device
from genflow.engine.optimizer import build_optimizer
from genflow.engine.schedule import rehearse_schedulers
from genflow.engine.sizes import (
    UNFUSED,
    asked_for,
    check_activations,
    check_network,
    failed_update,
    is_mistake,
    saved_bytes,
)
from genflow.errors import UserError
from genflow.methods.base import Method

#: Parameters of a method that is built with random weights and runs on the CPU; larger ones run on the meta device.
_SMALL = 20_000_000
#: Modules above which a method takes long to trace or run on any device, and does neither before it trains.
MANY_MODULES = 2500
#: Bytes of activations, and multiply-adds, of the rows that run on the CPU.
_LITTLE, _QUICK = 2 * 10**9, 10**11
#: How much more time, than for activations, the bytes of a feed's rows take, which go through encoders and all pairs.
_FEED = 20
_ROWS = 4
#: Rows of a batch that a feed is given; one of larger batches is not rehearsed.
_FED = 4096


def rehearse(
    graph: ComponentGraph, method: Method, data: LoaderSection, objects: Mapping[str, Any], macs: int = 0
) -> None:
    """Build the optimizer, schedules and hooks of a recipe, and run its method forward and backward on a few samples.

    Args:
        graph: the recipe.
        method: as :func:`~genflow.analysis.description.build_on_meta` builds it.
        data: the recipe's, that fits the method.
        objects: the method's components by their places in the recipe.
        macs: multiply-adds of an image, as far as they are known.

    Raises:
        UserError: one of them refuses; the line names its place.
    """
    section = graph.section("optim_wrapper")
    for name in ("fused", "foreach"):  # there is no such code for the meta device
        section.optimizer.arguments.pop(name, None)
    optimizer = build_optimizer(section, method)
    rehearse_schedulers(graph, optimizer)
    graph.section("custom_hooks")
    if sum(1 for _ in method.modules()) > MANY_MODULES:
        return
    saved = check_network(graph, method, data)
    if _is_small(method, data, saved, macs) and _feeds(graph, method, data, objects):
        _run(graph, data)
    elif method.feed is None:
        _run_without_numbers(graph, method, data, objects)


def _is_small(method: Method, data: LoaderSection, saved: int, macs: int) -> bool:
    """Whether a few rows run with numbers in no time and memory."""
    rows = min(_ROWS, data.batch_size) if method.feed is None else data.batch_size
    parameters = sum(parameter.numel() for parameter in method.parameters())
    return parameters <= _SMALL and rows * saved <= _LITTLE and rows * macs <= _QUICK


def _feeds(graph: ComponentGraph, method: Method, data: LoaderSection, objects: Mapping[str, Any]) -> bool:
    """Whether the rows that a feed makes, if there is one, are few and small."""
    if method.feed is None:
        return True
    if get_world_size() > 1 or data.batch_size > _FED:
        return False  # such a method may take means over all processes
    return _FEED * sum(asked_for(graph, method, 1, objects).values()) <= _LITTLE


def _with_numbers(graph: ComponentGraph, objects: dict[str, Any]) -> Method:
    def weights(name: str) -> dict[str, Tensor]:
        state = graph.prerequisites[name].graph.build_artifact().state_dict()
        return {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}

    with torch.random.fork_rng(devices=[]):
        return graph.build(weights, objects)


def _run(graph: ComponentGraph, data: LoaderSection) -> None:
    objects: dict[str, Any] = {}
    method = _with_numbers(graph, objects)
    count = data.batch_size if method.feed is not None else min(_ROWS, data.batch_size)
    indices = torch.arange(count) % len(data.dataset)
    draws = Draws(graph.section("seed"), torch.arange(count), count)
    device, bfloat16 = training_device(), graph.section("optim_wrapper").precision == "bfloat16"
    method.to(device)
    try:
        batch: dict[str, Any] = {**data.dataset.batch(indices, draws), "draws": draws}
        if method.feed is not None:
            method.feed.push(batch)
            batch = method.feed.rows(batch)
        rows = len(batch["labels"]) if method.feed is not None else data.batch_size
        batch = {name: value[:_ROWS].to(device) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16), saved_bytes(method) as saved:
            (batch,) = method.prepare([batch])
            loss = method(**batch)["loss"]
        loss.backward()
    except UserError:  # of a data set, which names its file
        raise
    except Exception as error:  # whatever a component does
        raise failed_update(graph, error, objects) from error
    check_activations(graph, saved[0] // len(batch["labels"]), rows)


def _run_without_numbers(
    graph: ComponentGraph, method: Method, data: LoaderSection, objects: Mapping[str, Any]
) -> None:
    """Only shapes are seen, and what needs numbers is not run to its end."""
    positions = torch.arange(_ROWS, device="meta")
    images = torch.zeros(_ROWS, *data.dataset.image_shape, device="meta")
    try:
        with saved_bytes(method) as saved:
            method(images=images, labels=positions, draws=Draws(0, positions, _ROWS))
    except Exception as error:  # whatever a component does
        if is_mistake(error):
            raise failed_update(graph, error, objects) from error
        return
    check_activations(graph, saved[0] // (UNFUSED * _ROWS), data.batch_size)
