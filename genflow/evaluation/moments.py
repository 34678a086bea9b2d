"""Mean and covariance of features, summed up batch by batch and process by process."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genflow.evaluation.metrics import distance_of_factors


@dataclass
class Moments:
    """Sums over features in float64, so that neither batches nor processes change what comes of them.

    Args:
        count: features.
        total: (D,) their sum.
        products: (D, D) the sum of their outer products.
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def none(cls, width: int) -> "Moments":
        """Of no features."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def add(self, features: Tensor, times: Tensor | None = None) -> None:
        """Add (B, D) features, of any type and device; each as often as the (B,) float64 numbers say."""
        rows = features.detach().to("cpu", torch.float64)
        weighted = rows if times is None else rows * times[:, None]
        self.count += len(rows) if times is None else int(times.sum())
        self.total += weighted.sum(dim=0)
        self.products += weighted.T @ rows

    @property
    def gaussian(self) -> "Gaussian":
        """Mean and unbiased covariance."""
        if self.count < 2:
            raise ValueError(f"a covariance takes two features or more, found {self.count}")
        mean = self.total / self.count
        covariance = (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean.numpy(), ((covariance + covariance.T) / 2).numpy())


@dataclass(frozen=True)
class Gaussian:
    """A mean (D,) and a covariance (D, D), float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def factor(self) -> NDArray[np.float64]:
        """F with F^T F the covariance, whose negative eigenvalues are rounding errors."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T

    def distance(self, other: "Gaussian") -> float:
        """The Fréchet distance, see :func:`~genflow.evaluation.metrics.frechet_distance`."""
        return distance_of_factors(self.mean, self.factor, other.mean, other.factor)
