"""Arithmetic that autocast must leave alone, and passes without a graph beside it."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switch autocast off on ``device``; the meta device, where nothing is computed, has none."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def without_graph() -> Iterator[None]:
    """Run trained networks without a graph inside a training step.

    Under autocast torch keeps the casts of weights (2.9 does, 2.14 does not), and would hand those made without a graph
    to later passes with one, whose weights then got no gradient; so they are forgotten at the end.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()
