"""Maximum mean discrepancy: distances between means in the space of a kernel."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from genflow.distribution_distances.base import DistributionDistance
from genflow.draws import Draws
from genflow.ranges import Above0, Length, NotNegative
from genflow.registry import DISTRIBUTION_DISTANCES

# What keeps the kernel's matrix between landmarks regular, as a share of its diagonal, 1.
_RIDGE = 1e-4


@DISTRIBUTION_DISTANCES.register_module()
class KernelDistance(DistributionDistance):
    """MMD^2 = E k(x, x') - 2 E k(x, y) + E k(y, y'), x generated, y real (Gretton et al., 2012).

    Averages over pairs of different samples, so that it is unbiased, and may be below 0. Positions are compared each
    for itself. Distances are in units of the root mean square distance of real samples, which is found when training
    starts and stays.

    The repulsion among generated samples is exact. So is the attraction to the real samples of the update; with
    ``landmarks`` it is that of all real samples with which training starts, seen through some of them, as Feng et
    al. have it (arXiv 2607.02375): E k(x, y) ~ k(x, L) k(L, L)^-1 E k(L, y), Nyström's approximation.

    Args:
        kernel: of a distance d and a bandwidth b: ``gaussian`` exp(-d^2 / (2 b^2)), ``laplace`` exp(-d / b), ``energy``
            -d, for which there is no bandwidth (the energy distance).
        bandwidths: whose kernels are averaged.
        landmarks: 0 compares with the real samples of the update.

    Raises:
        ValueError: landmarks for the energy distance, whose kernel is not positive definite.
    """

    def __init__(
        self,
        kernel: Literal["gaussian", "laplace", "energy"] = "gaussian",
        bandwidths: Annotated[Sequence[Above0], Length()] = (0.25, 0.5, 1.0),
        landmarks: NotNegative = 0,
    ):
        super().__init__()
        if landmarks and kernel == "energy":
            raise ValueError("landmarks: the energy distance has none, its kernel is not positive definite")
        self.kernel = kernel
        self.bandwidths = tuple(bandwidths)
        self.landmarks = landmarks
        self._weights: Tensor | None = None

    def begin(self, positions: int, width: int) -> None:
        self.register_buffer("scale", torch.zeros(positions, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        if self.landmarks:
            self.register_buffer("marks", torch.zeros(positions, self.landmarks, width))
            self.register_buffer("marked", torch.zeros((), dtype=torch.int64))
            self.register_buffer("affinity", torch.zeros(positions, self.landmarks, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, generated: Tensor, real: Tensor) -> None:
        """As in the contract; the first real samples are the landmarks, all of them what lies between."""
        points = real.transpose(0, 1)
        if not self.landmarks:
            if not self.count:
                self.scale.copy_(_mean_square_distance(points))
            self.count += points.shape[1]
            return
        marked = int(self.marked)
        taken = min(self.landmarks - marked, points.shape[1])
        self.marks[:, marked : marked + taken] = points[:, :taken].to(self.marks.dtype)
        self.marked += taken
        if int(self.marked) < self.landmarks:
            return
        if not self.count:
            self.scale.copy_(_mean_square_distance(self.marks))
            points = torch.cat([self.marks.to(points.dtype), points[:, taken:]], dim=1)  # earlier ones are all marks
        self.count += points.shape[1]
        means = self._of(self.marks.to(points.dtype), points).mean(dim=2)
        self.affinity.lerp_(means.double(), points.shape[1] / self.count)
        self.forget()

    def forward(self, generated: Tensor, real: Tensor, draws: Draws) -> Tensor:
        """As in the contract.

        Raises:
            ValueError: there are fewer samples to start with than landmarks, or fewer than two.
        """
        if len(generated) < 2:
            raise ValueError(f"pairs of generated samples take two of them, found {len(generated)}")
        if not self.has_started(self.count):
            self.observe(generated.detach(), real)
            if not self.has_started(self.count):
                raise ValueError(f"{self.landmarks} landmarks take as many real samples, found {int(self.marked)}")
        x, y = generated.transpose(0, 1), real.transpose(0, 1)
        repulsion = _between_different(self._of(x, x))
        if self.landmarks:
            marks = self.marks.to(x.dtype)
            weights = self._landmark_weights(marks)
            attraction = (self._of(x, marks).mean(dim=1) * weights).sum(dim=1)
            constant = (self.affinity.to(x.dtype) * weights).sum(dim=1)
        else:
            attraction = self._of(x, y).mean(dim=(1, 2))
            constant = _between_different(self._of(y, y))
        return (repulsion - 2 * attraction + constant).mean()

    def _landmark_weights(self, marks: Tensor) -> Tensor:
        """(T, K) k(L, L)^-1 E k(L, y)."""
        if self._weights is None or self._weights.device != marks.device:
            with torch.no_grad():
                among = self._of(marks, marks).double()
                among.diagonal(dim1=1, dim2=2).add_(_RIDGE)
                self._weights = torch.linalg.solve(among, self.affinity.unsqueeze(2)).squeeze(2)
        return self._weights.to(marks.dtype)

    def _of(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel between (T, N, C) and (T, M, C): (T, N, M)."""
        squares = _squares(x, y) / self.scale.to(x.dtype).clamp(min=1e-12).view(-1, 1, 1)
        if self.kernel == "gaussian":
            return torch.stack([(squares / (-2 * width**2)).exp() for width in self.bandwidths]).mean(dim=0)
        # A point has no distance to itself, where the root has no derivative.
        distances = torch.where(squares > 1e-12, squares, 1).sqrt() * (squares > 1e-12)
        if self.kernel == "energy":
            return -distances
        return torch.stack([(distances / -width).exp() for width in self.bandwidths]).mean(dim=0)

    def forget(self) -> None:
        self._weights = None


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squares of distances between (T, N, C) and (T, M, C): (T, N, M)."""
    product = torch.baddbmm(y.square().sum(dim=2).unsqueeze(1), x, y.mT, alpha=-2)
    return (product + x.square().sum(dim=2).unsqueeze(2)).clamp(min=0)


def _between_different(kernel: Tensor) -> Tensor:
    """(T, N, N) to (T,) means over pairs of different samples."""
    count = kernel.shape[1]
    return (kernel.sum(dim=(1, 2)) - kernel.diagonal(dim1=1, dim2=2).sum(dim=1)) / (count * (count - 1))


def _mean_square_distance(points: Tensor) -> Tensor:
    """(T, N, C) to (T,), float64; twice the variance."""
    return 2 * points.double().var(dim=1).sum(dim=1)
