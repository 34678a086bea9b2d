"""The line between data and noise on which velocity models work (flow matching; docs/pmf.md)."""

from torch import Tensor


def sample(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z = (1 - t) x + t e: (B, C, H, W) data ``clean`` at t = 0 and ``noise`` at 1, for (B,) times."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * clean + t * noise
