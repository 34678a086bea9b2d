"""One picture of a user's: read as it is meant, or refused in one line."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from mmengine import fileio
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from genflow.data.folder_listing import is_address
from genflow.draws import Draws
from genflow.errors import UserError, nearest, opencv_missing, reason
from genflow.ranges import Length, Range

_Byte = Annotated[int, Range(low=0, high=255)]
#: A CSS name of a colour, ``#rrggbb``, or (red, green, blue).
Colour = Annotated[str, Length()] | tuple[_Byte, _Byte, _Byte]

#: What pictures are, whatever their names end in. Pillow knows others, of which EPS runs a program of its own.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Pillow's modes without a known range of values.
_UNBOUNDED = ("I", "F")
#: Bytes of a file; the largest picture that Pillow opens has fewer, without compression and in 16 bits.
_LARGEST = 2**30


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


def read_bytes(path: str | Path, what: str) -> bytes:
    """The content of a file, or of what lies at an address that mmengine has a backend for (``s3://``, ``http://``).

    Raises:
        UserError: it cannot be read, is no regular file, or has more than a gibibyte.
    """
    try:
        if is_address(path):
            return fileio.get(path)
        require_file(path, what)
        if os.path.getsize(path) > _LARGEST:
            raise ValueError(f"found {os.path.getsize(path)} bytes, expected at most {_LARGEST}")
        return fileio.get(path, backend_args={"backend": "local"})
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: not a readable {what}: {error.strerror or error}") from None
    except Exception as error:  # backends fail in many ways
        raise UserError(f"{path}: not a readable {what}: {reason(error)}") from None


def colour_values(colour: Colour, place: str = "background") -> tuple[int, int, int]:
    """Red, green and blue of a colour, each from 0 to 255.

    Raises:
        UserError: there is no such colour; ``place`` says where it stands.
    """
    try:
        values = ImageColor.getrgb(colour) if isinstance(colour, str) else tuple(colour)
    except ValueError:
        values = ()
    if len(values) != 3:
        hint = nearest(colour, ImageColor.colormap)
        raise UserError(f"{place}: found {colour!r}, expected a CSS name of a colour or [red, green, blue]{hint}")
    return values


def read_pixels(path: str | Path, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Read a picture as a viewer shows it: turned as its EXIF entry says, over a colour where it is transparent.

    16 bits of grey are rounded to 8. Of an animation it is the first frame.

    Args:
        path: a file, or an address (see :func:`read_bytes`), of a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP picture.
        background: red, green and blue behind transparent pixels.

    Returns:
        (H, W, 3) uint8, red first.

    Raises:
        UserError: it is no picture, damaged, larger than Pillow's limit of 89 million pixels, or of a mode whose range
            of values is not known.
    """
    content = read_bytes(path, "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage in what is not shown
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                return _decoded(content, picture, background)
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable picture: expected BMP, GIF, JPEG, PNG, PPM, TIFF or WebP") from None
    except ImportError as error:
        raise opencv_missing("mmcv, which decodes pictures", error) from error
    except Exception as error:  # decoders fail in many ways
        raise UserError(f"{path}: not a readable picture: {error}") from None


def read_picture(path: str | Path, channels: int) -> Image.Image:
    """As :func:`read_pixels`, for Pillow.

    Args:
        path: as there.
        channels: 1 for grey (mode ``L``, of colours the luma of ITU-R 601), 3 for mode ``RGB``.
    """
    shown = Image.fromarray(read_pixels(path))
    return shown.convert("L") if channels == 1 else shown


def _decoded(content: bytes, picture: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """The pixels of a picture that was opened from ``content``."""
    if picture.mode in ("RGB", "L") and not picture.has_transparency_data:
        import mmcv  # here, for it imports OpenCV

        return mmcv.imfrombytes(content, channel_order="rgb", backend="pillow")
    # Of the rest mmcv would clip 16 bits, and show transparent pixels over colours of its own.
    return np.array(_composed(ImageOps.exif_transpose(picture), background).convert("RGB"))


def _composed(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The picture in 8 bits and without transparency."""
    if picture.mode in _UNBOUNDED:
        raise ValueError(f"found mode {picture.mode}, whose range is not known, expected 8 or 16 bits per channel")
    if picture.mode.startswith("I;16"):  # Pillow would clip them
        if picture.has_transparency_data:
            raise ValueError("found 16 bits of grey with a transparent shade, expected 8 bits, or no transparency")
        return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    page = Image.new("RGBA", picture.size, background)
    page.alpha_composite(picture.convert("RGBA"))
    return page


def center_crop(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture, ``side`` pixels square, as ADM crops (arXiv 2105.05233).

    The picture is halved by averages of 2x2 pixels while its shorter side is at least twice ``side``, then resized so
    that this side is ``side``, bicubic, then cropped.
    """
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = side / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def to_images(pixels: np.ndarray, draws: Draws | None) -> Tensor:
    """(B, H, W, C) bytes to (B, C, H, W) images in [-1, 1]; with ``draws`` half of them mirrored."""
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    mirrored = [False] * len(planes) if draws is None else (draws.uniform("flip") < 0.5).tolist()
    images = torch.empty(planes.shape)
    for image, plane, mirror in zip(images, planes, mirrored, strict=True):  # one at a time stays in the cache
        image.copy_(plane.flip(2) if mirror else plane).div_(255).sub_(0.5).div_(0.5)
    return images
