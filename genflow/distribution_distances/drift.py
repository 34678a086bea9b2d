"""A drifting field as a distance: what Drifting trains on, of all samples together."""

from torch import Tensor

from genflow.distribution_distances.base import DistributionDistance
from genflow.draws import Draws
from genflow.field_estimators.base import DriftEstimator, FeatureSets
from genflow.registry import DISTRIBUTION_DISTANCES


@DISTRIBUTION_DISTANCES.register_module()
class DriftDistance(DistributionDistance):
    """The mean square of the way that a field moves generated samples (docs/drifting.md, D5).

    Its gradient is the drift, not the derivative of its value. Drifting itself compares the samples of each class for
    themselves; for one class, or none, this is its loss.

    Args:
        field: the drift.
    """

    def __init__(self, field: DriftEstimator):
        super().__init__()
        self.field = field

    def forward(self, generated: Tensor, real: Tensor, draws: Draws) -> Tensor:
        sets = FeatureSets(generated.unsqueeze(0), real.unsqueeze(0), real[:0].unsqueeze(0))
        return self.field({"": sets}).losses[""].mean()
