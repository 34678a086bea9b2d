"""One picture of a user's: read as it is meant, or refused in one line."""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from genflow.draws import Draws
from genflow.errors import UserError

#: What pictures are, whatever their names end in. Pillow knows others, of which EPS runs a program of its own.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Pillow's modes without a known range of values.
_UNBOUNDED = ("I", "F")


def require_file(path: str | Path, what: str) -> None:
    """See that ``path`` is a regular file, or a link to one: to open a pipe is to wait for its writer.

    Raises:
        UserError: it is something else, or not there.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable {what}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise UserError(f"{path}: not a readable {what}: found {kinds.get(stat.S_IFMT(mode), 'a device')}")


def read_picture(path: str | Path, channels: int) -> Image.Image:
    """Read a picture as a viewer shows it: turned as its EXIF entry says, over white where it is transparent.

    16 bits of grey are rounded to 8. Of an animation it is the first frame.

    Args:
        path: a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file.
        channels: 1 for grey (mode ``L``, of colours the luma of ITU-R 601), 3 for mode ``RGB``.

    Raises:
        UserError: the file is no picture, damaged, larger than Pillow's limit of 89 million pixels, or of a mode
            whose range of values is not known.
    """
    require_file(path, "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage in what is not shown
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                shown = _composed(ImageOps.exif_transpose(picture)).convert("RGB")
    except Exception as error:  # decoders fail in many ways
        raise UserError(f"{path}: not a readable picture: {error}") from None
    return shown.convert("L") if channels == 1 else shown


def _composed(picture: Image.Image) -> Image.Image:
    """The picture in 8 bits and without transparency."""
    if picture.mode in _UNBOUNDED:
        raise ValueError(f"found mode {picture.mode}, whose range is not known, expected 8 or 16 bits per channel")
    if picture.mode.startswith("I;16"):  # Pillow would clip them
        if picture.has_transparency_data:
            raise ValueError("found 16 bits of grey with a transparent shade, expected 8 bits, or no transparency")
        return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture.convert("RGBA"))
    return page


def to_images(pixels: np.ndarray, draws: Draws | None) -> Tensor:
    """(B, H, W, C) bytes to (B, C, H, W) images in [-1, 1]; with ``draws`` half of them mirrored."""
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    if draws is not None:
        mirrored = (draws.uniform("flip") < 0.5).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(3), images)
    return images.contiguous()
