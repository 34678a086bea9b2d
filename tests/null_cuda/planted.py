"""Losses with the faults that the null device is there to find."""

import torch
from torch import Tensor

from genflow.losses.base import Loss
from genflow.registry import LOSSES


@LOSSES.register_module()
class OnCPU(Loss):
    """Makes a tensor where the data are not."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().flatten(1).mean(dim=1) * torch.ones(len(target))


@LOSSES.register_module()
class NotMoved(Loss):
    """Keeps a tensor that ``.to`` does not find."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones(1, 2)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return ((prediction - target).square().flatten(1).mean(dim=1, keepdim=True) * self.factor).mean(dim=1)


@LOSSES.register_module()
class Asking(Loss):
    """Waits for a number."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        squares = (prediction - target).square().flatten(1).mean(dim=1)
        return squares * (1.0 + 0.0 * squares.sum().item())
