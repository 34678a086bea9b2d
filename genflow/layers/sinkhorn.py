"""Sinkhorn's algorithm in log space."""

import torch
from torch import Tensor


def entropic_potentials(affinity: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The potentials of the entropic plan exp(affinity + rows + u + columns + v) between two sets.

    Args:
        affinity: (n, I, J), minus the costs over the temperature.
        rows, columns: (n, I) and (n, J) logarithms of the masses, which sum to 1.
        iterations: each one update of both potentials.

    Returns:
        u (n, I) and v (n, J), in units of the temperature; the columns' masses hold exactly.
    """
    u, v = torch.zeros_like(rows), torch.zeros_like(columns)
    for _ in range(iterations):
        u = -torch.logsumexp(affinity + (columns + v).unsqueeze(1), dim=2)
        v = -torch.logsumexp(affinity + (rows + u).unsqueeze(2), dim=1)
    return u, v
