"""Arithmetic that autocast must leave alone, and passes without a graph beside it."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch

_off_on_meta = ContextVar("autocast is off on the meta device", default=False)


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switch autocast off on ``device``; on the meta device, which has none, only note it for those who count."""
    return _noted() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    token = _off_on_meta.set(True)
    try:
        yield
    finally:
        _off_on_meta.reset(token)


def is_full_precision() -> bool:
    """Whether :func:`full_precision` stands around the present arithmetic of the meta device."""
    return _off_on_meta.get()


@contextlib.contextmanager
def without_graph() -> Iterator[None]:
    """Run trained networks without a graph inside a training step.

    Under autocast torch keeps the casts of weights (2.9 does, 2.14 does not), and would hand those made without a graph
    to later passes with one, whose weights then got no gradient; so they are forgotten at the end.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()
