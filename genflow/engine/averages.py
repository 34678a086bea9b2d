"""Exponential moving averages of the weights, several at once."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from genflow.config.sections import AverageSection
from genflow.engine.sharding import divided_like


class WeightAverage:
    """One exponential moving average, in float32 beside the weights.

    Args:
        weights: the weights to follow, by name; the average starts as a copy.
        rule: constant decay, or a half-life in images (docs/pmf.md, P13; EDM2).
    """

    def __init__(self, weights: Mapping[str, Tensor], rule: AverageSection):
        self.rule = rule
        self.values = {name: value.detach().float().clone() for name, value in weights.items()}

    def decay(self, images: int, batch_size: int) -> float:
        """The factor of the old average in the update after which ``images`` images have been seen."""
        if self.rule.decay is not None:
            return self.rule.decay
        half_life = self.rule.half_life
        if self.rule.ramp_up is not None:
            half_life = min(half_life, self.rule.ramp_up * images)
        return 0.5 ** (batch_size / max(half_life, 1e-8))

    def initial_share(self, updates: int, batch_size: int) -> float:
        """The share that the initial weights have in the average after so many updates of ``batch_size`` images."""
        if self.rule.decay is not None:
            return self.rule.decay**updates
        return math.prod(self.decay(update * batch_size, batch_size) for update in range(1, updates + 1))

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], images: int, batch_size: int) -> None:
        """Move towards ``weights`` after an optimizer update."""
        share = 1.0 - self.decay(images, batch_size)
        targets = [weights[name].detach().float() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), targets, share)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Restore a saved average."""
        for name, value in self.values.items():
            value.copy_(divided_like(values[name], value))


@contextmanager
def swapped(weights: Mapping[str, Tensor], average: WeightAverage | None) -> Iterator[None]:
    """Put an average in the place of the weights for the duration; None leaves them."""
    if average is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in weights.items()}
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(average.values[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(own[name])
