"""The contract of losses."""

from torch import Tensor, nn


class Loss(nn.Module):
    """A distance per sample."""

    kind = "loss"
    #: Whether values are weighted so that they hardly change while training gets on.
    weighted: bool = False

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, ...) tensors of equal shape to (B,) distances >= 0."""
        raise NotImplementedError
