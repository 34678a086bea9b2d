"""Normalisation of the targets that a flow's trajectory gives (docs/biflow.md, B12)."""

from typing import Literal

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn


class TrajectoryNorm(nn.Module):
    """Divides the states of a trajectory by their root mean square (norm control).

    Args:
        states: number of states to normalise.
        per: ``state``: one running scalar per state, frozen after ``warmup`` updates, so that the target
            carries the relative size of samples; ``sample``: each sample by its own.
        warmup: updates over which the running mean square is averaged; the first still divides by 1.
    """

    def __init__(self, states: int, per: Literal["state", "sample"], warmup: int):
        super().__init__()
        self.per = per
        self.warmup = warmup
        self.register_buffer("mean_square", torch.ones(states))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.seen: list[Tensor] = []

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """Normalise (B, C, H, W) states; in training mode :meth:`after_update` learns from them."""
        if self.per == "sample":
            return [state / state.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() for state in states]
        if self.training:
            squares = torch.stack([state.detach().flatten(1).square().mean(dim=1) for state in states])
            self.seen.append(squares.to(self.mean_square.dtype))
        return [state / scale for state, scale in zip(states, self.mean_square.sqrt(), strict=True)]

    def after_update(self) -> None:
        """Learn once per update, from all its micro-batches and processes."""
        if not self.seen:
            return
        square = torch.cat(self.seen, dim=1).mean(dim=1)
        self.seen.clear()
        all_reduce(square, op="mean")
        # Without a branch on the counter, a GPU is not made to wait for it.
        learning = self.updates < self.warmup
        self.updates += learning
        self.mean_square.lerp_(square, learning.to(square.dtype) / self.updates.clamp(min=1))
