"""The Sinkhorn divergence: entropic optimal transport without its bias."""

import torch
from torch import Tensor

from genflow.distribution_distances.base import DistributionDistance
from genflow.draws import Draws
from genflow.layers.sinkhorn import entropic_potentials
from genflow.ranges import Above0, Steps
from genflow.registry import DISTRIBUTION_DISTANCES


@DISTRIBUTION_DISTANCES.register_module()
class SinkhornDivergence(DistributionDistance):
    """OT(x, y) - (OT(x, x) + OT(y, y)) / 2, x generated, y real (Feydy et al., arXiv 1810.08278).

    OT is entropic transport at the cost |x - y|^2 / 2 in units of its mean between x and y, by iterations in log space.
    Its derivative is that of the cost under the plan found (their section 3), exact once the iterations have converged;
    the unit counts as a constant. Positions are compared each for itself.

    Args:
        temperature: the square of the blur, in these units.
        iterations: of Sinkhorn's algorithm, each one update of both potentials.
    """

    def __init__(self, temperature: Above0 = 0.05, iterations: Steps = 20):
        super().__init__()
        self.temperature = temperature
        self.iterations = iterations

    def forward(self, generated: Tensor, real: Tensor, draws: Draws) -> Tensor:
        x, y = generated.transpose(0, 1), real.transpose(0, 1)
        unit = self.unit(x, y)
        both = self._transport(_costs(x, y) / unit)
        return (both - (self._transport(_costs(x, x) / unit) + self._transport(_costs(y, y) / unit)) / 2).mean()

    @staticmethod
    @torch.no_grad()
    def unit(x: Tensor, y: Tensor) -> Tensor:
        """(T, 1, 1) mean costs between (T, N, C) and (T, M, C)."""
        return _costs(x, y).mean(dim=(1, 2), keepdim=True).clamp(min=1e-12)

    def _transport(self, costs: Tensor) -> Tensor:
        """(T, N, M) costs to (T,) prices."""
        mass = [costs.new_zeros(costs.shape[0], count).log_softmax(dim=1) for count in costs.shape[1:]]
        with torch.no_grad():
            affinity = costs / -self.temperature
            rows, columns = entropic_potentials(affinity, *mass, self.iterations)
            dual = self.temperature * ((mass[0].exp() * rows).sum(dim=1) + (mass[1].exp() * columns).sum(dim=1))
            plan = (affinity + (mass[0] + rows).unsqueeze(2) + (mass[1] + columns).unsqueeze(1)).exp()
            priced = (plan * costs).sum(dim=(1, 2))
        return dual + (plan * costs).sum(dim=(1, 2)) - priced


def _costs(x: Tensor, y: Tensor) -> Tensor:
    """Halves of the squares of distances between (T, N, C) and (T, M, C): (T, N, M)."""
    return (x.square().sum(dim=2).unsqueeze(2) + y.square().sum(dim=2).unsqueeze(1)) / 2 - x @ y.mT
