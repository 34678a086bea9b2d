"""What a drift sees of the real samples: how many are nearest to a generated one, and how many each is drawn to."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from genflow.field_estimators.base import FeatureSets, Neighbours


@torch.no_grad()
def count_neighbours(
    features: Mapping[str, FeatureSets],
    units: Mapping[str, Tensor],
    log_kernels: Sequence[Callable[[Tensor], Tensor]],
) -> Neighbours:
    """The means over groups and features.

    Args:
        features: of generated and positive samples.
        units: by which the distances of each feature are divided.
        log_kernels: of the temperatures.
    """
    coverage, effective = [], []
    for name, sets in features.items():
        generated, positive = (part.float().transpose(1, 2) for part in (sets.generated, sets.positive))
        distances = torch.cdist(generated, positive)  # (L, T, G, P)
        hit = distances.new_zeros(*distances.shape[:2], distances.shape[3])
        hit.scatter_(2, distances.argmin(dim=3), 1.0)
        coverage.append(hit.mean())
        distances /= units[name]
        entropies = [torch.special.entr(kernel(distances).softmax(dim=3)).sum(dim=3) for kernel in log_kernels]
        effective.append(torch.stack([entropy.exp().mean() for entropy in entropies]))
    return Neighbours(torch.stack(coverage).mean(), torch.stack(effective).mean(dim=0))
