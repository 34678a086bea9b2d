"""Arithmetic that autocast must leave alone."""

import contextlib
from contextlib import AbstractContextManager

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switch autocast off on ``device``; the meta device, where nothing is computed, has none."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
