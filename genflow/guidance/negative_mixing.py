"""Guidance by mixing real samples of any class into what repels (docs/drifting.md, D15)."""

from typing import Annotated

import torch
from torch import Tensor

from genflow.draws import Draws
from genflow.guidance.base import NegativeGuidance, power_law
from genflow.ranges import Positive, Power, Range, Scale, Share
from genflow.registry import GUIDANCE


@GUIDANCE.register_module()
class NegativeMixing(NegativeGuidance):
    """N negatives of weight (a - 1) (G - 1) / N beside G generated samples, for a scale a drawn per label.

    Below 1 the weight is below 0, as published: negatives attract, and forces balance where the model follows the
    mixture a p(x|c) + (1 - a) p(x). All that repels still weighs a (G - 1), which is above 0.

    Args:
        negatives: N.
        max_scale, min_scale: scales lie in [min_scale, max_scale].
        power: their density falls as a^-power.
        unguided_share: share of labels whose scale is set to 1.

    Raises:
        ValueError: ``max_scale`` is below ``min_scale``.
    """

    def __init__(
        self,
        negatives: Positive,
        max_scale: Scale = 4.0,
        power: Power = 3.0,
        unguided_share: Share = 0.0,
        min_scale: Annotated[float, Range(low=0.01, high=1e6)] = 1.0,
    ):
        super().__init__()
        if max_scale < min_scale:
            raise ValueError(f"max_scale is {max_scale}, below min_scale, {min_scale} (1 means no guidance)")
        self.negatives = negatives
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.power = power
        self.unguided_share = unguided_share

    @property
    def highest_scale(self) -> float:
        return self.max_scale

    def scale(self, uniform: Tensor, unguided: Tensor) -> Tensor:
        """Two (L,) numbers in (0, 1) to scales."""
        scale = power_law(uniform, self.min_scale, self.max_scale, self.power)
        return torch.where(unguided < self.unguided_share, 1.0, scale)

    def draw(self, draws: Draws) -> Tensor:
        return self.scale(draws.uniform("guidance scale"), draws.uniform("no guidance"))

    def weight(self, scale: Tensor, generated: int) -> Tensor:
        return (scale - 1) * (generated - 1) / self.negatives
