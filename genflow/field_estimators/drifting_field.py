"""The drifting field of "Generative Modeling via Drifting" (arXiv 2602.04770): attraction and repulsion by a kernel."""

from typing import Literal

import torch
from torch import Tensor

from genflow.field_estimators.pairwise_drift import Counts, PairwiseDrift
from genflow.ranges import Share, Size
from genflow.registry import FIELD_ESTIMATORS

# Added to the normalised distance of a point to itself.
_SELF = 100.0


@FIELD_ESTIMATORS.register_module()
class DriftingField(PairwiseDrift):
    """V = V+ - V-, exp(-distance / temperature) normalised over targets and sources (docs/drifting.md, D5 to D8).

    With ``attraction`` and ``repulsion`` of 1 it is anti-symmetric: it changes its sign when real and generated
    samples change places, so that it is zero where they have the same distribution.

    Args:
        attraction, repulsion: factors a and b of a V+ - b V-, alpha and beta in D8.
        normalization: of the kernel: ``both`` takes the root of a softmax over targets times one over sources,
            ``targets`` the first alone, ``none`` the kernel itself (D7).
        floor: the least affinity of two points, after normalisation and before weights; the square root of the
            published 1e-6. The paper does not say what it is for the other normalisations, here the same.
        options: as in :class:`~genflow.field_estimators.pairwise_drift.PairwiseDrift`.
    """

    def __init__(
        self,
        attraction: Size = 1.0,
        repulsion: Size = 1.0,
        normalization: Literal["both", "targets", "none"] = "both",
        floor: Share = 1e-3,
        **options,
    ):
        super().__init__(**options)
        self.attraction = attraction
        self.repulsion = repulsion
        self.normalization = normalization
        self.floor = floor

    def coefficients(self, distances: Tensor, weights: Tensor | None, counts: Counts, temperature: float) -> Tensor:
        logits = distances * (-1 / temperature)
        logits.diagonal(dim1=1, dim2=2).sub_(_SELF / temperature)
        affinity = self._normalized(logits).clamp_(min=self.floor)
        if weights is not None:
            affinity *= weights.unsqueeze(1)
        repelling, attracting = affinity.tensor_split([counts.generated + counts.negative], dim=2)
        repelled, attracted = repelling.sum(dim=2, keepdim=True), attracting.sum(dim=2, keepdim=True)
        attracting *= self.attraction * repelled
        repelling *= -self.repulsion * attracted
        if self.attraction != self.repulsion:  # otherwise the rows sum to 0
            rest = (self.attraction - self.repulsion) * (attracted * repelled).squeeze(2)
            affinity.diagonal(dim1=1, dim2=2).sub_(rest)
        return affinity

    def _normalized(self, logits: Tensor) -> Tensor:
        if self.normalization == "none":
            return logits.exp_()
        rows = torch.softmax(logits, dim=2)
        if self.normalization == "targets":
            return rows
        return rows.mul_(torch.softmax(logits, dim=1)).sqrt_()
