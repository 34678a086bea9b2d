"""Logit-normal times (MeanFlow, arXiv 2505.13447; docs/pmf.md, P5)."""

from typing import Literal

import torch
from torch import Tensor

from genflow.draws import Draws
from genflow.ranges import Share, Size
from genflow.registry import TIME_SAMPLERS
from genflow.time_samplers.base import Times, TimeSampler


@TIME_SAMPLERS.register_module()
class LogitNormalTimes(TimeSampler):
    """sigmoid(mean + std * n) for standard normal n, twice, as t and r.

    Args:
        mean, std: of the normal numbers.
        equal_share: share of the rows with r = t, rounded down in every global batch and spread evenly over it.
        uniform_share: share of the rows whose t and r are uniform on [0, 1] instead.
        region: ``plane``: 0 <= r <= t; ``both_lines``: r = t, and r = 0 on the other rows; ``r_equals_t`` and
            ``r_zero``: one of the lines for all rows. The lines are for comparison.
        sort_first: whether the pairs are sorted before r becomes t (MeanFlow, iMF), so that t is the larger of two
            draws on these rows too, or after (pMF).
    """

    def __init__(
        self,
        mean: float,
        std: Size,
        equal_share: Share = 0.5,
        uniform_share: Share = 0.0,
        region: Literal["plane", "r_equals_t", "r_zero", "both_lines"] = "plane",
        sort_first: bool = False,
    ):
        super().__init__()
        self.mean = mean
        self.std = std
        self.equal_share = {"r_equals_t": 1.0, "r_zero": 0.0}.get(region, equal_share)
        self.uniform_share = uniform_share
        self.to_data = region in ("r_zero", "both_lines")
        self.sort_first = sort_first

    def forward(self, draws: Draws) -> Times:
        uniform = draws.uniform("time mix") < self.uniform_share
        t, r = (
            torch.where(uniform, draws.uniform(f"uniform {name}"), torch.sigmoid(self.mean + self.std * normal))
            for name, normal in ((name, draws.normal(f"time {name}")) for name in ("t", "r"))
        )
        equal = spread(draws.batch_indices, self.equal_share)
        if self.to_data:
            r = torch.zeros_like(r)
        elif self.sort_first:
            t, r = torch.maximum(t, r), torch.minimum(t, r)
        r = torch.where(equal, t, r)
        return Times(torch.maximum(t, r), torch.minimum(t, r), equal)


def spread(indices: Tensor, share: float) -> Tensor:
    """(B,) bool, true for ``share`` of the indices 0, 1, 2, ..., as evenly as can be."""
    # A tiny excess keeps a share such as 0.3 from falling short of a whole number.
    counts = ((torch.stack([indices, indices + 1]).double() * share) + 1e-9).floor()
    return counts[1] > counts[0]
