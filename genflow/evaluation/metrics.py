"""Distances between two sets of feature vectors."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_ROWS = 1024  # rows of a distance matrix held at a time


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Fréchet distance between Gaussians fitted to two sets (Heusel et al. 2017, arXiv 1706.08500).

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)), with unbiased covariances, which may be
    singular.

    Args:
        a: (N, D) features.
        b: (M, D) features.

    Returns:
        The distance (a squared length), >= 0.

    Raises:
        ValueError: non-finite features, other shapes, or fewer than two rows.
    """
    a, b = _checked(a, b, rows=2)
    return distance_of_factors(a.mean(axis=0), _covariance_factor(a), b.mean(axis=0), _covariance_factor(b))


def distance_of_factors(
    mean_a: NDArray[np.float64],
    factor_a: NDArray[np.float64],
    mean_b: NDArray[np.float64],
    factor_b: NDArray[np.float64],
) -> float:
    """The Fréchet distance of Gaussians with (D,) means and covariances F^T F of (R, D) factors F."""
    # With C = F^T F the trace of the root is the sum of the singular values of F_a F_b^T: no root of a
    # product that is not symmetric, nothing complex and nothing to regularise.
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    means = np.square(mean_a - mean_b).sum()
    return max(0.0, float(means + np.square(factor_a).sum() + np.square(factor_b).sum() - 2 * cross))


def _covariance_factor(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """F with F^T F the covariance of (N, D) points."""
    return np.linalg.qr((points - points.mean(axis=0)) / np.sqrt(len(points) - 1), mode="r")


def kernel_distance(
    a: ArrayLike, b: ArrayLike, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401).

    The unbiased estimate of the squared maximum mean discrepancy under (x . y / D + 1)^3, averaged over random subsets.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        subsets: how many.
        size: of each, at most that of the smaller set.
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: non-finite features, other shapes, or fewer than two rows.
    """
    a, b = _checked(a, b, rows=2)
    draws, size = np.random.default_rng(seed), min(size, len(a), len(b))

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        base = x @ y.T / x.shape[1] + 1
        return base * base * base  # numpy's power takes ten times as long

    found = []
    for _ in range(subsets):
        x, y = (points[draws.choice(len(points), size, replace=False)] for points in (a, b))
        within = sum(gram.sum() - np.trace(gram) for gram in (kernel(x, x), kernel(y, y))) / (size * (size - 1))
        found.append(within - 2 * kernel(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    A set's manifold is the union of balls around its points that reach to their k-th nearest neighbour in
    the set, the point itself not counted.

    Args:
        real: (N, D) features.
        generated: (M, D) features.
        k: neighbours, smaller than N and M.

    Returns:
        The share of generated points in the real manifold, and of real points in the generated manifold,
        each in [0, 1].

    Raises:
        ValueError: non-finite features, other shapes, or no more than k rows.
    """
    real, generated = _checked(real, generated, rows=k + 1)
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def _share_inside(points: NDArray[np.float64], centers: NDArray[np.float64], k: int) -> float:
    # Imported here so that `import genflow` stays light.
    from scipy.spatial.distance import cdist

    def row_blocks(rows: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
        return (cdist(rows[first : first + _ROWS], centers) for first in range(0, len(rows), _ROWS))

    # The point itself, at distance 0, takes the first place.
    radii = np.concatenate([np.partition(distances, k, axis=1)[:, k] for distances in row_blocks(centers)])
    inside = np.concatenate([(distances <= radii).any(axis=1) for distances in row_blocks(points)])
    return float(inside.mean())


def energy_distance(samples: Tensor, data: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, 0 for equal distributions."""
    within = torch.cdist(samples, samples).mean() + torch.cdist(data, data).mean()
    return (2 * torch.cdist(samples, data).mean() - within).item()


def _checked(a: ArrayLike, b: ArrayLike, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < rows:
        raise ValueError(f"expected (N, D) sets of {rows} rows or more, found {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features are not finite")
    return a, b
