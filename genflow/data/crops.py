"""Random resized crops of a batch: one box per sample, cut and resized by two matrix products per image."""

import math

import torch
from torch import Tensor

from genflow.draws import Draws

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)


def draw_boxes(draws: Draws, height: int, width: int, area: tuple[float, float] = AREA, use: str = "crop") -> Tensor:
    """One box per sample inside an image of that size.

    Its share of the area is uniform in ``area``, width / height log-uniform in [3/4, 4/3]; sides are rounded and
    cut to the image, without drawing again, and the place is uniform among those that fit (docs/pmf.md, P9).

    Args:
        draws: of the samples.
        height, width: of the image.
        area: smallest and largest share.
        use: names the streams of random numbers.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    pixels = height * width * (area[0] + (area[1] - area[0]) * draws.uniform(f"{use} area"))
    low, high = (math.log(ratio) for ratio in ASPECT)
    aspect = torch.exp(low + (high - low) * draws.uniform(f"{use} aspect"))
    box_height = (pixels / aspect).sqrt().round().clamp(1, height)
    box_width = (pixels * aspect).sqrt().round().clamp(1, width)
    top = (draws.uniform(f"{use} top") * (height - box_height + 1)).floor()
    left = (draws.uniform(f"{use} left") * (width - box_width + 1)).floor()
    return torch.stack([top, left, box_height, box_width], dim=1).long()


def crop_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resize the box of each image to a square: cubic (Keys, a = -0.5), with antialiasing (docs/pmf.md, P9).

    At its border a box takes in pixels around it; the kernel is cut, and its weights made to sum to 1 again, at the
    border of the image only.

    Args:
        images: (B, C, H, W) of float32 or float64.
        boxes: (B, 4) of :func:`draw_boxes`.
        size: side of the result.

    Returns:
        (B, C, size, size), differentiable in ``images``, and not clipped.
    """
    top, left, height, width = boxes.to(images.dtype).unbind(dim=1)
    rows = _resampling(top, height, images.shape[2], size)
    columns = _resampling(left, width, images.shape[3], size)
    return rows.unsqueeze(1) @ images @ columns.unsqueeze(1).mT


def _resampling(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(B, size, source) weights of source pixels in the pixels of [start, start + length) at the new size."""
    step = (length / size).view(-1, 1, 1)
    index = torch.arange(max(source, size), device=start.device, dtype=start.dtype)
    centre = start.view(-1, 1, 1) + (index[:size].view(1, -1, 1) + 0.5) * step - 0.5
    weights = _cubic((centre - index[:source]).abs() / step.clamp(min=1))
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """The kernel of Keys (1981) with a = -0.5 at distances >= 0."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
