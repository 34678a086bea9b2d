"""Temperatures that fall over the first updates (arXiv 2603.09936)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genflow.ranges import Above0, Positive


@dataclass(frozen=True)
class AnnealingSection:
    """How temperatures fall.

    Args:
        factor: of every temperature in the first update.
        updates: after which it is 1, and stays so.
    """

    factor: Above0
    updates: Positive


class TemperatureAnnealing(nn.Module):
    """The factor of all temperatures: factor^(1 - update / updates), the exponential law of the paper.

    The paper lets a Gaussian kernel's width fall as e^(-rt); the logarithm of a temperature falls as evenly. Updates
    are counted in a buffer, so that a resumed run goes on where it was.
    """

    update: Tensor

    def __init__(self, section: AnnealingSection):
        super().__init__()
        self.section = section
        self.register_buffer("update", torch.zeros((), dtype=torch.int64))

    def after_update(self) -> None:
        """Count one more; the training loop calls it."""
        self.update += 1

    def forward(self) -> Tensor:
        """The factor of the next update, a float32 scalar."""
        left = 1 - (self.update / self.section.updates).clamp(max=1)
        return self.section.factor**left
