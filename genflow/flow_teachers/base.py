"""The contract of flow teachers: invertible maps from data to noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Trajectory:
    """What a flow of n blocks does to a batch.

    Args:
        states: n + 1 tensors (B, C, H, W): the input x^0, then the state after each block; the last is z.
        log_dets: n tensors (B,): each block's log-determinant divided by the number of dimensions.
        saturation: share of affine parameters at their bound, a scalar; zero without a bound.
    """

    states: list[Tensor]
    log_dets: list[Tensor]
    saturation: Tensor

    @property
    def latent(self) -> Tensor:
        """(B, C, H, W) the noise end z."""
        return self.states[-1]

    @property
    def log_det(self) -> Tensor:
        """(B,) the whole flow's log-determinant divided by the number of dimensions."""
        return torch.stack(self.log_dets).sum(dim=0)


class FlowTeacher(nn.Module):
    """An invertible map with an exact log-determinant.

    A subclass sets ``image_shape`` (C, H, W), ``num_classes`` (0: unconditional), ``blocks``, the number of
    states after the input, and ``inverse_evaluations``, the sequential network calls of one inverse.
    Labels are (B,) int64 or None; ``num_classes`` and -1 stand for "no class" in both directions.
    """

    kind = "flow teacher"
    image_shape: tuple[int, int, int]
    num_classes: int
    blocks: int
    inverse_evaluations: int

    def repeated_layers(self) -> Sequence[nn.Module]:
        """Its layers of equal form, which training may compile or checkpoint one by one."""
        return ()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Trajectory:
        """Map data (B, C, H, W) to noise."""
        raise NotImplementedError

    def inverse(self, z: Tensor, labels: Tensor | None = None, guidance: float | Tensor = 0.0) -> Tensor:
        """Map noise (B, C, H, W) to data exactly; ``guidance`` is a number or (B,), 0 means none."""
        raise NotImplementedError

    def sample_prior(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise (B, C, H, W) into a draw from the flow's prior."""
        return noise

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B,) log-density of x in nats under the standard normal prior (docs/biflow.md, B4)."""
        trajectory = self(x, labels)
        z = trajectory.latent.flatten(1)
        dimensions = z.shape[1]
        log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)
        return log_prior + dimensions * trajectory.log_det

    def bits_per_dimension(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B,) bits per dimension of 8-bit data that was scaled to [-1, 1] (docs/biflow.md, B4)."""
        dimensions = math.prod(x.shape[1:])
        return (math.log(128) - self.log_prob(x, labels) / dimensions) / math.log(2)

    def score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) gradient of the log-density with respect to x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(self.log_prob(x, labels).sum(), x)[0]

    def denoise(self, x: Tensor, labels: Tensor | None, noise_std: float, multiplier: float = 1.0) -> Tensor:
        """Tweedie's estimate x + multiplier * noise_std^2 * score(x) of the clean image (docs/biflow.md, B10)."""
        return x + multiplier * noise_std**2 * self.score(x, labels)
