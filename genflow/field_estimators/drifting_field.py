"""The drifting field of "Generative Modeling via Drifting" (arXiv 2602.04770): attraction and repulsion by a kernel."""

import math
from typing import Literal

import torch
from torch import Tensor

from genflow.field_estimators.pairwise_drift import Counts, PairwiseDrift
from genflow.ranges import Share, Size
from genflow.registry import FIELD_ESTIMATORS

# Added to the normalised distance of a point to itself.
_SELF = 100.0
_LEAST_MASS = 1e-30


@FIELD_ESTIMATORS.register_module()
class DriftingField(PairwiseDrift):
    """V = V+ - V-, by a kernel that is normalised over targets and sources (docs/drifting.md, D5 to D8).

    With ``attraction`` and ``repulsion`` of 1 it is anti-symmetric: it changes its sign when real and generated
    samples change places, so that it is zero where they have the same distribution.

    Args:
        attraction, repulsion: factors a and b of a V+ - b V-, alpha and beta in D8.
        normalization: of the kernel: ``both`` takes the root of a softmax over targets times one over sources,
            ``targets`` the first alone, ``none`` the kernel itself (D7).
        floor: the least affinity of two points, after normalisation and before weights; the square root of the
            published 1e-6. The paper does not say what it is for the other normalisations, here the same.
        kernel: ``laplace`` is the published exp(-d / tau). ``gaussian`` is exp(-d^2 / (2 tau)), whose V is a difference
            of two scores (arXiv 2603.09936). ``sharp`` weighs displacements by the Laplace kernel k and divides
            them by the mass of its sharp kernel k# = (1 + d / tau) k, whose gradient they are: the field of a scalar
            potential (arXiv 2604.06333), V = N+ / M+ - N- / M- with N = sum k (y - x) and M = sum k#. As in D8, forces
            are V times the masses M+ M-, and affinities of D7 stand for k.
        self_term: which generated samples and negatives repel one. ``published`` takes all, and puts a sample far
            from itself; ``independent`` those of the other of two halves, in which both are dealt out in turn.
        bias_correction: correct both centroids for the bias of a ratio of sums over few samples, which is of first
            order in 1 / samples (the subject of arXiv 2604.27239): affinities A become A (1 + p - sum p^2), with the
            share p of a sample in its mass. The formula is the textbook's first-order one, not copied from the paper.
        options: as in :class:`~genflow.field_estimators.pairwise_drift.PairwiseDrift`.
    """

    def __init__(
        self,
        attraction: Size = 1.0,
        repulsion: Size = 1.0,
        normalization: Literal["both", "targets", "none"] = "both",
        floor: Share = 1e-3,
        kernel: Literal["laplace", "gaussian", "sharp"] = "laplace",
        self_term: Literal["published", "independent"] = "published",
        bias_correction: bool = False,
        **options,
    ):
        super().__init__(**options)
        self.attraction = attraction
        self.repulsion = repulsion
        self.normalization = normalization
        self.floor = floor
        self.kernel = kernel
        self.self_term = self_term
        self.bias_correction = bias_correction
        if self_term == "independent":
            self.least_generated = 2  # a single one has no other half
        if bias_correction:
            self.takes_attracting_negatives = False  # shares of a mass are no shares if it may vanish

    def log_kernel(self, distances: Tensor, temperature: float | Tensor) -> Tensor:
        if self.kernel == "gaussian":
            return distances.square() / (-2 * temperature)
        return distances * (-1 / temperature)

    def coefficients(
        self, distances: Tensor, weights: Tensor | None, counts: Counts, temperature: float | Tensor
    ) -> Tensor:
        logits = self.log_kernel(distances, temperature)
        own = None
        if self.self_term == "independent":
            own = _same_half(counts).to(distances.device, non_blocking=True)
            logits.masked_fill_(own, -math.inf)
        else:
            logits.diagonal(dim1=1, dim2=2).sub_(_SELF / temperature)
        affinity = self._normalized(logits).clamp_(min=self.floor)
        if own is not None:
            affinity.masked_fill_(own, 0.0)
        if weights is not None:
            affinity *= weights.unsqueeze(1)
        masses = affinity * (1 + distances / temperature) if self.kernel == "sharp" else affinity
        kinds = [counts.generated + counts.negative]
        repelled, attracted = (part.sum(dim=2, keepdim=True) for part in masses.tensor_split(kinds, dim=2))
        if self.bias_correction:
            totals = zip(masses.tensor_split(kinds, dim=2), (repelled, attracted), strict=True)
            shares = [part / total.clamp(min=_LEAST_MASS) for part, total in totals]
            affinity *= torch.cat([1 + part - part.square().sum(dim=2, keepdim=True) for part in shares], dim=2)
        repelling, attracting = affinity.tensor_split(kinds, dim=2)
        attracting *= self.attraction * repelled
        repelling *= -self.repulsion * attracted
        if self.attraction != self.repulsion or self.kernel == "sharp":  # otherwise the rows sum to 0
            affinity.diagonal(dim1=1, dim2=2).sub_(affinity.sum(dim=2))
        return affinity

    def _normalized(self, logits: Tensor) -> Tensor:
        if self.normalization == "none":
            return logits.exp_()
        rows = torch.softmax(logits, dim=2)
        if self.normalization == "targets":
            return rows
        return rows.mul_(torch.softmax(logits, dim=1)).sqrt_()


def _same_half(counts: Counts) -> Tensor:
    """(G, K): which generated samples and negatives are in the half of a generated one."""
    sides = torch.cat([counts.sides(), torch.full((counts.positive,), -1)])
    return sides[: counts.generated, None] == sides
