"""The contract of time samplers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genflow.draws import Draws


@dataclass(frozen=True)
class Times:
    """The times of a batch, 0 for data and 1 for noise.

    Args:
        t: (B,) in [0, 1], where the sample is.
        r: (B,) in [0, t], where the average velocity leads.
        equal: (B,) bool, rows whose ``r`` is ``t``: flow matching.
        host: the same times on the CPU, where they lie elsewhere.
    """

    t: Tensor
    r: Tensor
    equal: Tensor
    host: "Times | None" = None

    @property
    def on_host(self) -> "Times":
        """The times on the CPU if they are known there, so that rows are found without waiting for the device."""
        return self if self.host is None else self.host

    def to(self, device: torch.device) -> "Times":
        """The times on a device; they keep those that they are made of."""
        if self.t.device == device:
            return self
        t, r, equal = (value.to(device, non_blocking=True) for value in (self.t, self.r, self.equal))
        return Times(t, r, equal, self.on_host)


class TimeSampler(nn.Module):
    """Draws the pairs of times that training sees."""

    kind = "time sampler"

    def forward(self, draws: Draws) -> Times:
        """The times of the samples of ``draws``, float32."""
        raise NotImplementedError
