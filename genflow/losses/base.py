"""The contract of losses."""

from torch import Tensor, nn


class Loss(nn.Module):
    """A distance per sample."""

    kind = "loss"

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, ...) tensors of equal shape to (B,) distances >= 0."""
        raise NotImplementedError
