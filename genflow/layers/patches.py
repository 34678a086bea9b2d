"""Images to patch tokens and back."""

import math

import torch
from einops import rearrange
from torch import Tensor

#: Axes of images whose sides are patches times pixels, and of the numbers of a patch, by ``channels_last``.
_IMAGES = "batch channel (rows row) (columns column)"
_NUMBERS = {False: "channel row column", True: "row column channel"}


def patchify(images: Tensor, patch_size: int, channels_last: bool = False) -> Tensor:
    """(B, C, H, W) to (B, T, C*P*P): row-major patches, features channel-major (docs/biflow.md, B1).

    With ``channels_last`` features are ordered by row, column, channel (docs/drifting.md, D2).
    """
    tokens = f"batch (rows columns) ({_NUMBERS[channels_last]})"
    return rearrange(images, f"{_IMAGES} -> {tokens}", row=patch_size, column=patch_size)


def unpatchify(tokens: Tensor, patch_size: int, channels: int, channels_last: bool = False) -> Tensor:
    """The inverse of :func:`patchify` for square images: (B, T, C*P*P) to (B, C, H, W)."""
    side = math.isqrt(int(tokens.shape[1]))  # while it is traced, a shape holds tensors
    sizes = {"rows": side, "columns": side, "row": patch_size, "column": patch_size, "channel": channels}
    return rearrange(tokens, f"batch (rows columns) ({_NUMBERS[channels_last]}) -> {_IMAGES}", **sizes)


def as_tokens(maps: Tensor) -> Tensor:
    """(B, C, H, W) maps to (B, H*W, C): a token for every position, row-major; a view where the layout allows it."""
    return rearrange(maps, "batch channel row column -> batch (row column) channel")


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
