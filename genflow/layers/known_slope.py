"""Losses whose derivatives are known with them."""

from torch import Tensor
from torch.autograd import Function


class KnownSlope(Function):
    """``apply(x, losses, slope)``: (L,) or scalar losses as they are, with ``slope`` for their derivative by x.

    ``slope`` has the shape of ``x``, whose first axis is that of (L,) losses.
    """

    @staticmethod
    def forward(ctx, x: Tensor, losses: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return losses.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad.view(-1, *[1] * (slope.dim() - 1)).to(slope.dtype), None, None
