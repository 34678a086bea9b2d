"""Distributions of points in the plane, as images of two channels and one pixel."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.draws import Draws
from genflow.ranges import Positive, Range
from genflow.registry import DATASETS

Distribution = Literal["swiss_roll", "checkerboard", "eight_gaussians", "two_moons", "two_modes"]

#: ``two_modes``: distance of either centre from the middle, and standard deviations of a mode, across and up.
MODE_CENTRE = 0.45
MODE_STD = (0.12, 0.04)

_SEED = 0


def draw_points(name: Distribution, draws: Draws) -> Tensor:
    """Points of one of the distributions: (B, 2) float32 in [-1, 1], one for each position of ``draws``.

    All are about centred, and scaled by a constant such that the standard deviation of each axis is 0.4
    to 0.5, but for the flat ``two_modes``, of which it is that of the horizontal one; the few points of Gaussian tails
    that this leaves outside the square are moved to its border.
    ``draw_points("two_moons", Draws(seed, torch.arange(n)))`` draws n points.
    """
    return _DISTRIBUTIONS[name](draws).clamp(-1, 1)


def _swiss_roll(draws: Draws) -> Tensor:
    """A spiral of one and a half turns, thin, about even along its length."""
    low, high = 1.5 * math.pi, 4.5 * math.pi
    # The length of the spiral grows with the square of the angle.
    angle = (low**2 + (high**2 - low**2) * draws.uniform("swiss roll angle")).sqrt()
    spiral = angle.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    # Its box, not its first turn, is centred.
    return 0.9 / high * spiral - 0.1 + 0.015 * draws.normal("swiss roll noise", (2,))


def _checkerboard(draws: Draws) -> Tensor:
    """The eight dark squares of a board of four by four."""
    square = (8 * draws.uniform("checkerboard square")).long()
    row, column = square // 2, 2 * (square % 2)
    corner = torch.stack([column + row % 2, row], dim=1)
    return 0.84 * ((corner + draws.uniform("checkerboard place", (2,))) / 2 - 1)


def _eight_gaussians(draws: Draws) -> Tensor:
    """Eight narrow Gaussians on a circle."""
    angle = (8 * draws.uniform("eight gaussians component")).long() * (math.pi / 4)
    centres = 0.65 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + 0.05 * draws.normal("eight gaussians noise", (2,))


def _two_moons(draws: Draws) -> Tensor:
    """Two half circles, each with one end inside the other."""
    angle = math.pi * draws.uniform("two moons angle")
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    sign = torch.where(draws.uniform("two moons half") < 0.5, 1.0, -1.0).unsqueeze(1)
    noisy = sign * upper + 0.05 * draws.normal("two moons noise", (2,))
    # The moons lie beside each other, so the axes need factors of their own.
    return noisy * noisy.new_tensor([0.52, 0.85])


def _two_modes(draws: Draws) -> Tensor:
    """Two Gaussians at equal height, wider than they are tall (docs/drifting.md, D17)."""
    centre = torch.where(draws.uniform("two modes side") < 0.5, -MODE_CENTRE, MODE_CENTRE)
    noise = draws.normal("two modes noise", (2,))
    return noise * noise.new_tensor(MODE_STD) + torch.stack([centre, torch.zeros_like(centre)], dim=1)


_DISTRIBUTIONS: dict[str, Callable[[Draws], Tensor]] = {
    "swiss_roll": _swiss_roll,
    "checkerboard": _checkerboard,
    "eight_gaussians": _eight_gaussians,
    "two_moons": _two_moons,
    "two_modes": _two_modes,
}


def projection(dimensions: int) -> Tensor:
    """(D, 2) with orthonormal columns, which maps the plane into D dimensions: always the same, the identity for 2.

    Points ``p`` of the plane lie at ``p @ projection.T``, and ``x @ projection`` leads back (docs/pmf.md, P15).
    """
    if dimensions == 2:
        return torch.eye(2)
    columns = Draws(_SEED, torch.arange(dimensions)).normal("projection", (2,)).double()
    return torch.linalg.qr(columns).Q.float()


@DATASETS.register_module()
class Toy2D(Dataset):
    """Points of a distribution in the plane, without classes: every label is 0, which then means "no class".

    Sample i is point i of :func:`draw_points` under a seed of the data set's own, always the same.

    Args:
        name: the distribution.
        size: number of points.
        dimensions: D, of the space that the plane lies in; see :func:`projection`.
    """

    num_classes = 0

    def __init__(self, name: Distribution, size: Positive = 65536, dimensions: Annotated[int, Range(low=2)] = 2):
        self.name = name
        self.size = size
        self.image_shape = (dimensions, 1, 1)

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Points number ``indices``; there is nothing to augment."""
        points = draw_points(self.name, Draws(_SEED, indices)) @ projection(self.image_shape[0]).T
        return {"images": points.view(-1, *self.image_shape), "labels": torch.zeros_like(indices)}
