"""The drift of a Sinkhorn divergence between generated and real features (entropic optimal transport)."""

import torch
from torch import Tensor

from genflow.field_estimators.pairwise_drift import Counts, PairwiseDrift
from genflow.layers.sinkhorn import entropic_potentials
from genflow.ranges import Steps
from genflow.registry import FIELD_ESTIMATORS


@FIELD_ESTIMATORS.register_module()
class SinkhornField(PairwiseDrift):
    """V(x) = T(x) - S(x): where transport to the real samples takes x, less where transport to its own kind does.

    For the cost |x - y|^2 / 2 this is the negative gradient of the Sinkhorn divergence (Feydy et al.,
    arXiv 1810.08278, section 3) with respect to a generated sample. T and S are barycentres of entropic plans, whose
    blur is the square root of the temperature; 10 iterations in log space. Own kind means samples that are
    independent of x, for x itself would hold it back: generated samples and extra negatives are dealt out in two
    halves, which are transported to each other. Extra negatives are a part of the generated distribution by their
    weights, as in the drifting field.

    Args:
        iterations: of Sinkhorn's algorithm, each one update of both potentials.
        options: as in :class:`~genflow.field_estimators.pairwise_drift.PairwiseDrift`.
    """

    # Weights are masses.
    takes_attracting_negatives = False
    # A single one has no independent ones.
    least_generated = 2

    def __init__(self, iterations: Steps = 10, **options):
        super().__init__(**options)
        self.iterations = iterations

    def sources(self, counts: Counts) -> int:
        return counts.generated + counts.negative

    def log_kernel(self, distances: Tensor, temperature: float | Tensor) -> Tensor:
        return distances.square() / (-2 * temperature)

    def coefficients(
        self, distances: Tensor, weights: Tensor | None, counts: Counts, temperature: float | Tensor
    ) -> Tensor:
        sources = self.sources(counts)
        costs = self.log_kernel(distances, temperature)
        mass = distances.new_zeros(len(distances), counts.total) if weights is None else weights.log()
        coefficients = torch.zeros_like(distances[:, : counts.generated])
        plan = self._plan(costs[:, :, sources:], mass[:, :sources], mass[:, sources:])
        coefficients[:, :, sources:] = plan[0][:, : counts.generated]
        # In a half, generated ones come first.
        sides = counts.sides()
        first, second = ((sides == side).nonzero().squeeze(1) for side in (0, 1))
        first, second = (half.to(distances.device, non_blocking=True) for half in (first, second))
        between = costs[:, first[:, None], second]
        there, back = self._plan(between, mass[:, first], mass[:, second])
        others = counts.generated // 2
        own = counts.generated - others
        coefficients[:, first[:own, None], second] = -there[:, :own]
        coefficients[:, second[:others, None], first] = -back.mT[:, :others]
        return coefficients

    def _plan(self, affinity: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The entropic plan between two sets, normalised for each point of the one and of the other.

        Args:
            affinity: (n, I, J), minus the costs over the temperature.
            rows, columns: (n, I) and (n, J) logarithms of the masses, up to a constant.

        Returns:
            two (n, I, J): rows that sum to 1, and columns that sum to 1.
        """
        rows, columns = rows.log_softmax(dim=1), columns.log_softmax(dim=1)
        row_potential, column_potential = entropic_potentials(affinity, rows, columns, self.iterations)
        return (
            (affinity + (columns + column_potential).unsqueeze(1)).softmax(dim=2),
            (affinity + (rows + row_potential).unsqueeze(2)).softmax(dim=1),
        )
