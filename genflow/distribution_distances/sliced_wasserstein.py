"""Optimal transport along random directions."""

import torch
from torch import Tensor

from genflow.distribution_distances.base import DistributionDistance
from genflow.draws import Draws
from genflow.ranges import Positive
from genflow.registry import DISTRIBUTION_DISTANCES


@DISTRIBUTION_DISTANCES.register_module()
class SlicedWasserstein(DistributionDistance):
    """The mean square of the one-dimensional Wasserstein-2 distances along random directions (Bonneel et al., 2015).

    Positions are compared each for itself. Every update draws other directions.

    Args:
        directions: how many, the same for all positions.
    """

    def __init__(self, directions: Positive = 256):
        super().__init__()
        self.directions = directions

    def forward(self, generated: Tensor, real: Tensor, draws: Draws) -> Tensor:
        """As in the contract.

        Raises:
            ValueError: there are not as many generated as real samples, which are paired in their order.
        """
        if len(generated) != len(real):
            raise ValueError(f"{len(generated)} generated and {len(real)} real samples, expected as many")
        directions = draws.normal("directions", (generated.shape[2], self.directions))[0].to(generated)
        directions = torch.nn.functional.normalize(directions, dim=0)
        first, second = ((features @ directions).sort(dim=0).values for features in (generated, real))
        return (first - second).square().mean()
