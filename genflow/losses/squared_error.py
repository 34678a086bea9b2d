"""Squared error per sample."""

from typing import Literal

import torch
from torch import Tensor

from genflow.losses.base import Loss
from genflow.registry import LOSSES


@LOSSES.register_module()
class SquaredError(Loss):
    """Squared error, summed or averaged over everything but the batch.

    Args:
        reduction: ``sum`` (the habit of the MeanFlow family, which the constant of
            :class:`~genflow.losses.adaptive.AdaptiveWeighting` is made for) or ``mean``.
    """

    def __init__(self, reduction: Literal["sum", "mean"] = "sum"):
        super().__init__()
        self.reduction = reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, ...) tensors to (B,) distances, at least in float32."""
        wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
        square = (prediction.flatten(1).to(wide) - target.flatten(1).to(wide)).square()
        return square.sum(dim=1) if self.reduction == "sum" else square.mean(dim=1)
