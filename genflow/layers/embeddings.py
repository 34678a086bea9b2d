"""Embeddings of positions, labels and scalars."""

import math
from typing import ClassVar

import torch
from einops import repeat
from torch import Tensor, nn


def axial_rotation(side: int, head_width: int, theta: float = 1e4) -> Tensor:
    """Rotary angles of a square patch grid, rows in the first half of the head, columns in the second.

    Returns:
        (side*side, head_width/2) float32 angles, one per adjacent pair of channels, row-major patches.

    Raises:
        ValueError: ``head_width`` is not a multiple of 4.
    """
    if head_width % 4:
        raise ValueError(f"2-D rotary positions need a head width divisible by 4, found {head_width}")
    half = head_width // 2
    frequencies = theta ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    along = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    rows, columns = _grid(along)
    return torch.cat([rows, columns], dim=-1).float()


def axial_sinusoids(side: int, width: int) -> Tensor:
    """(side*side, width) float32 fixed positions of a patch grid: sines and cosines of the column, then of the row.

    Raises:
        ValueError: ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"2-D sinusoidal positions need a width divisible by 4, found {width}")
    frequencies = 1e4 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phases = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    along = torch.cat([phases.sin(), phases.cos()], dim=1)
    rows, columns = _grid(along)
    return torch.cat([columns, rows], dim=-1).float()


def _grid(along: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to the coordinates 0, 1, ... of an axis, (side, n), for row and column of (side*side, n) patches."""
    side = len(along)
    rows = repeat(along, "row numbers -> (row column) numbers", column=side)
    columns = repeat(along, "column numbers -> (row column) numbers", row=side)
    return rows, columns


def sequence_rotation(length: int, head_width: int, theta: float = 1e4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rotary angles of positions 0, 1, ...: (length, head_width/2) float32, one per pair of channels.

    Positions, frequencies and their products are rounded to ``dtype``.

    Raises:
        ValueError: ``head_width`` is odd.
    """
    if head_width % 2:
        raise ValueError(f"rotary positions need an even head width, found {head_width}")
    frequencies = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    return torch.outer(torch.arange(length).to(dtype), frequencies.to(dtype)).float()


def sequence_turns(length: int, head_width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(2, length, head_width/2) float32 cosines and sines of rotary angles, all steps rounded to ``dtype``.

    In bfloat16 odd positions above 256 do not exist, and angles are off by up to 1 rad (docs/drifting.md, D3).

    Raises:
        ValueError: ``head_width`` is odd.
    """
    angles = sequence_rotation(length, head_width, dtype=dtype)
    return torch.stack([angles.cos(), angles.sin()]).to(dtype).float()


def rotate_halves(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate channels i and i + d/2 of (..., L, d) by (2, L, d/2) cosines and sines, in the dtype of ``x``."""
    cosine, sine = turns.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of (..., L, d) by (L, d/2) angles, in the dtype of ``x``."""
    pairs = x.unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        # One complex product is several times faster than strided real ones here; compilers and GPUs fuse the latter.
        turned = torch.view_as_complex(pairs) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(-2)
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = pairs.unbind(-1)
    return torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1).flatten(-2)


def sinusoidal(values: Tensor, width: int, max_period: float = 1e4) -> Tensor:
    """(B,) scalars to (B, width) features: cosines, then sines, of geometric frequencies 1..1/max_period.

    Computed at least in float32.
    """
    half = width // 2
    wide = torch.promote_types(values.dtype, torch.float32)
    exponents = torch.arange(half, dtype=wide, device=values.device) / half
    phases = values.to(wide).unsqueeze(1) * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([phases.cos(), phases.sin()], dim=1)


class ScalarEmbedding(nn.Sequential):
    """A scalar's sinusoidal features through linear, SiLU, linear (docs/pmf.md, P10).

    The features' frequencies are at most 1, so that a derivative with respect to the scalar stays small.

    Args:
        width: W.
        features: number of sinusoidal features.
    """

    def __init__(self, width: int, features: int = 256):
        super().__init__(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        for linear in (self[0], self[2]):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, values: Tensor) -> Tensor:
        """(B,) to (B, W)."""
        return super().forward(sinusoidal(values, self[0].in_features).to(self[0].weight.dtype))


class GuidanceEmbedding(nn.Linear):
    """A linear map of sinusoidal features of w / (1 + w), which lies in [0, 1) for every guidance scale w >= 0.

    Args:
        width: width of the embedding, W.
        features: number of sinusoidal features.
    """

    def __init__(self, width: int, features: int = 256):
        super().__init__(features, width)

    def forward(self, scale: Tensor) -> Tensor:
        """(B,) scales to (B, 1, W)."""
        features = sinusoidal(scale / (1 + scale), self.in_features)
        return super().forward(features.to(self.weight.dtype)).unsqueeze(1)


class ClassEmbedding(nn.Module):
    """A class table whose null class is the mean of its rows (docs/biflow.md, B6).

    Args:
        num_classes: rows of the table, K.
        width: width of a row, W.
        std: standard deviation of the initial rows.
    """

    #: No matrix but a list of vectors, as optimizers of matrices want to know.
    stacked: ClassVar = {"table": 0}

    def __init__(self, num_classes: int, width: int, std: float = 0.01):
        super().__init__()
        self.table = nn.Parameter(std * torch.randn(num_classes, width))

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) labels to (B, W); K and -1 stand for "no class".

        Raises:
            IndexError: a label above K (on CPU; a device-side assertion on a GPU).
        """
        rows = torch.cat([self.table, self.table.mean(dim=0, keepdim=True)])
        return rows[torch.where(labels < 0, len(self.table), labels)]
