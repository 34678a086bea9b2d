"""Classifier-free guidance moved into training (docs/biflow.md, B17)."""

import math

import torch
from torch import Tensor

from genflow.draws import Draws
from genflow.guidance.base import ReverseGuidance
from genflow.ranges import Scale, Share
from genflow.registry import GUIDANCE


@GUIDANCE.register_module()
class TrainingTimeCFG(ReverseGuidance):
    """The model outputs guided quantities; losses see what they imply without guidance.

    A guided output is (1 + w) * conditional - w * null. The model learns to produce it directly from
    (label, w), so one pass samples at any scale w >= 0; w = 0 means no guidance.

    Args:
        max_scale: largest w; 1 + w is drawn log-uniformly from [1, 1 + max_scale].
        plain_share: share of samples with w = 0.
        label_drop: share of samples that lose their label.
    """

    def __init__(self, max_scale: Scale = 7.0, plain_share: Share = 0.1, label_drop: Share = 0.1):
        super().__init__()
        self.max_scale = max_scale
        self.plain_share = plain_share
        self.label_drop = label_drop

    @property
    def highest_scale(self) -> float:
        return self.max_scale

    def draw(self, draws: Draws) -> Tensor:
        scale = torch.expm1(draws.uniform("guidance scale") * math.log1p(self.max_scale))
        return torch.where(draws.uniform("guidance off") < self.plain_share, 0.0, scale)

    def recover(self, guided: Tensor, null: Tensor, scale: Tensor, dropped: Tensor) -> Tensor:
        """(guided + w * null) / (1 + w), at least in the precision of ``scale``; ``guided`` where dropped."""
        scale = torch.where(dropped, 0.0, scale).view(-1, *[1] * (guided.dim() - 1))
        return (guided + scale * null) / (1 + scale)
