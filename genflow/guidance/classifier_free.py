"""Ordinary classifier-free guidance: two passes at sampling (arXiv 2207.12598; docs/biflow.md, B16)."""

import torch
from torch import Tensor

from genflow.draws import Draws
from genflow.guidance.base import ReverseGuidance
from genflow.ranges import Share
from genflow.registry import GUIDANCE


@GUIDANCE.register_module()
class ClassifierFreeGuidance(ReverseGuidance):
    """Training drops labels and nothing else; sampling evaluates the model with and without class.

    Args:
        label_drop: share of samples that lose their label.
    """

    in_training = False

    def __init__(self, label_drop: Share = 0.1):
        super().__init__()
        self.label_drop = label_drop

    def draw(self, draws: Draws) -> Tensor:
        """Zeros: the scale is no input of the model."""
        return torch.zeros(len(draws), device=draws.positions.device)

    def recover(self, guided: Tensor, null: Tensor, scale: Tensor, dropped: Tensor) -> Tensor:
        """``guided`` itself, which is not guided here."""
        return guided
