"""Images to patch tokens and back."""

import math

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: int, channels_last: bool = False) -> Tensor:
    """(B, C, H, W) to (B, T, C*P*P): row-major patches, features channel-major (TARFlow, spec 1.1).

    With ``channels_last`` features are ordered by row, column, channel (Drifting, spec 2.3).
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cells = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    order = (0, 2, 4, 3, 5, 1) if channels_last else (0, 2, 4, 1, 3, 5)
    return cells.permute(order).reshape(batch, rows * columns, channels * patch_size**2)


def unpatchify(tokens: Tensor, patch_size: int, channels: int, channels_last: bool = False) -> Tensor:
    """The inverse of :func:`patchify` for square images: (B, T, C*P*P) to (B, C, H, W)."""
    batch, count, _ = tokens.shape
    side = math.isqrt(int(count))
    if channels_last:
        cells = tokens.reshape(batch, side, side, patch_size, patch_size, channels).permute(0, 5, 1, 3, 2, 4)
    else:
        cells = tokens.reshape(batch, side, side, channels, patch_size, patch_size).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(batch, channels, side * patch_size, side * patch_size)


def grid_side(image_size: int, patch_size: int) -> int:
    """Patches per side.

    Raises:
        ValueError: the image does not divide into patches.
    """
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    return image_size // patch_size


def raster_order(count: int, flipped: bool) -> Tensor:
    """(count,) the raster index of each token in block order."""
    order = torch.arange(count)
    return order.flip(0) if flipped else order
