"""The Fréchet distance of features as a loss (Yang et al., arXiv 2604.28190, section 3)."""

from typing import Literal

import torch
from torch import Tensor

from genflow.distribution_distances.base import DistributionDistance
from genflow.draws import Draws
from genflow.ranges import Positive, Share
from genflow.registry import DISTRIBUTION_DISTANCES


@DISTRIBUTION_DISTANCES.register_module()
class FrechetDistance(DistributionDistance):
    """|m_g - m_r|^2 + Tr(S_g + S_r - 2 (S_r^1/2 S_g S_r^1/2)^1/2) of means m and covariances S, float64.

    Features are means over positions. A batch is far too small for a covariance of thousands of channels, so the
    moments of generated samples are those of many updates, of which the present one alone carries a gradient. Real
    moments are those of the samples that training starts with, :meth:`observe`, and stay; without any, of the first
    update.

    Args:
        estimator: ``average``: running averages of the first and second moment, as exact as those of
            (1 + decay) / (1 - decay) updates' samples, and decay / (1 - decay) updates late; ``queue``: the moments of
            the newest samples, the present ones among them; ``batch``: of the present ones alone.
        decay: of the running averages.
        queue: samples in the queue.
    """

    def __init__(
        self,
        estimator: Literal["average", "queue", "batch"] = "average",
        decay: Share = 0.999,
        queue: Positive = 50_000,
    ):
        super().__init__()
        self.estimator = estimator
        self.decay = decay
        self.queue = queue
        self._seen: Tensor | None = None
        self._real: tuple[Tensor, Tensor, Tensor] | None = None
        self._queued: int | None = None

    def begin(self, positions: int, width: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.register_buffer("real_count", zeros())
        self.register_buffer("real_mean", zeros(width))
        self.register_buffer("real_second", zeros(width, width))
        self.register_buffer("count", zeros())
        if self.estimator == "average":
            self.register_buffer("mean", zeros(width))
            self.register_buffer("second", zeros(width, width))
        elif self.estimator == "queue":
            self.register_buffer("newest", torch.zeros(self.queue, width))

    @torch.no_grad()
    def observe(self, generated: Tensor, real: Tensor) -> None:
        rows = _pooled(real)
        self.real_count += len(rows)
        for average, value in zip((self.real_mean, self.real_second), _moments(rows), strict=True):
            average.lerp_(value, len(rows) / self.real_count)
        self.forget()
        self._keep(_pooled(generated), started=False)

    def forward(self, generated: Tensor, real: Tensor, draws: Draws) -> Tensor:
        rows = _pooled(generated)
        if not self.has_started(self.real_count):
            self.observe(generated.detach(), real)
        self._seen = rows.detach()
        mean, covariance = self._gaussian(rows)
        real_mean, real_root, real_trace = self._reference()
        product = real_root @ covariance @ real_root
        values = torch.linalg.eigvalsh((product + product.mT) / 2)
        # Those below rounding errors are 0, where a root has no derivative.
        least = values.detach().amax().clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
        roots = torch.where(values > least, values, 1).sqrt() * (values > least)
        return (mean - real_mean).square().sum() + covariance.trace() + real_trace - 2 * roots.sum()

    @torch.no_grad()
    def after_update(self) -> None:
        if self._seen is not None:
            self._keep(self._seen, started=True)
            self._seen = None

    def _keep(self, rows: Tensor, started: bool) -> None:
        """Take (N, C) rows into what is kept of generated samples."""
        self.count += len(rows)
        if self.estimator == "average":
            share = 1 - self.decay if started else len(rows) / self.count
            for average, value in zip((self.mean, self.second), _moments(rows), strict=True):
                average.lerp_(value, share)
        elif self.estimator == "queue":
            rows = rows[-self.queue :]
            places = (self.count - len(rows)).long() + torch.arange(len(rows), device=rows.device)
            self.newest[places % self.queue] = rows.to(self.newest.dtype)
            self._queued = None if self._queued is None else min(self._queued + len(rows), self.queue)

    def _gaussian(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of generated samples, with (N, C) present ones."""
        if self.estimator == "average":
            mean, second = _moments(rows)
            mean, second = (
                torch.lerp(kept, new, 1 - self.decay)
                for kept, new in zip((self.mean, self.second), (mean, second), strict=True)
            )
            return mean, second - torch.outer(mean, mean)
        if self.estimator == "queue":
            rows = self._with_newest(rows)
        mean, second = _moments(rows)
        return mean, (second - torch.outer(mean, mean)) * (len(rows) / (len(rows) - 1))

    def _with_newest(self, rows: Tensor) -> Tensor:
        """(N, C) rows and as many of the newest others as the queue holds beside them."""
        if self._queued is None:  # the device is asked once
            self._queued = min(int(self.count), self.queue)
        others = max(0, min(self.queue - len(rows), self._queued))
        places = self.count.long() - 1 - torch.arange(others, device=rows.device)
        return torch.cat([rows, self.newest[places % self.queue].to(rows.dtype)])

    def _reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, root and trace of the covariance of real samples."""
        if self._real is None or self._real[0].device != self.real_mean.device:
            with torch.no_grad():
                unbiased = self.real_count / (self.real_count - 1)
                covariance = (self.real_second - torch.outer(self.real_mean, self.real_mean)) * unbiased
                values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
                root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
                self._real = (self.real_mean, root, covariance.trace())
        return self._real

    def forget(self) -> None:
        self._real = self._queued = None


def _pooled(features: Tensor) -> Tensor:
    """(N, T, C) to (N, C) means over positions, float64."""
    return features.double().mean(dim=1)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) mean and (C, C) second moment of (N, C) rows."""
    return rows.mean(dim=0), rows.mT @ rows / len(rows)
