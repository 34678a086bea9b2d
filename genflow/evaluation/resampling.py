"""Images drawn again, for error bars."""

import torch
from torch import Tensor


def draw_again(labels: Tensor, wanted: Tensor, draws: torch.Generator) -> Tensor:
    """Draw rows with replacement, those of each label among themselves.

    Args:
        labels: (K,) of the rows there are.
        wanted: (N,) labels; each of ``labels`` is drawn as often as it is here.
        draws: random numbers.

    Returns:
        (N,) row numbers, or fewer where a wanted label has no row.
    """
    rows = []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        rows.append(own[torch.randint(len(own), (int((wanted == label).sum()),), generator=draws)])
    return torch.cat(rows)
