"""The contract of time samplers."""

from dataclasses import dataclass

from torch import Tensor, nn

from genflow.draws import Draws


@dataclass(frozen=True)
class Times:
    """The times of a batch, 0 for data and 1 for noise.

    Args:
        t: (B,) in [0, 1], where the sample is.
        r: (B,) in [0, t], where the average velocity leads.
        equal: (B,) bool, rows whose ``r`` is ``t``: flow matching.
    """

    t: Tensor
    r: Tensor
    equal: Tensor


class TimeSampler(nn.Module):
    """Draws the pairs of times that training sees."""

    kind = "time sampler"

    def forward(self, draws: Draws) -> Times:
        """The times of the samples of ``draws``, float32."""
        raise NotImplementedError
