"""Adaptive weighting of a loss."""

from torch import Tensor

from genflow.losses.base import Loss
from genflow.ranges import Power, Size
from genflow.registry import LOSSES


@LOSSES.register_module()
class AdaptiveWeighting(Loss):
    """d / stop_gradient((d + offset)^power), per sample (MeanFlow; docs/biflow.md, B14).

    With power 1 every sample weighs about the same, however large its distance.

    Args:
        loss: the distance d.
        power: p.
        offset: c; its scale is that of ``loss``, so a summed and an averaged distance need different ones.
    """

    weighted = True

    def __init__(self, loss: Loss, power: Power = 1.0, offset: Size = 0.01):
        super().__init__()
        self.loss = loss
        self.power = power
        self.offset = offset

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, ...) tensors to (B,) weighted distances."""
        distance = self.loss(prediction, target)
        return distance / (distance.detach() + self.offset) ** self.power
