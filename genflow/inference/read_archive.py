"""Archives of images and labels, as :func:`genflow.inference.write_images.write_images` writes them."""

import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from genflow.data.pictures import require_file
from genflow.errors import UserError

#: Bytes of images that are taken from one archive; a small file may unpack to any number.
_MOST = 2**30


def read_archive(path: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read an ``.npz`` archive.

    Nothing is unpacked before its header says that it is what is expected.

    Args:
        path: the file.
        shape: (C, H, W) that every image must have.

    Returns:
        ``images`` (N, H, W, C) uint8, and ``labels`` (N,) int64.

    Raises:
        UserError: it holds something else, or more than 1 GiB of images.
    """
    require_file(path, "archive")
    try:
        with zipfile.ZipFile(path) as archive:
            images = _read_images(archive, path, shape)
            return images, _read_labels(archive, path, len(images))
    except UserError:
        raise
    except Exception as error:  # damaged archives fail in many ways
        problem = error.args[0] if error.args else type(error).__name__
        raise UserError(f"{path}: not an archive of images and labels: {problem}") from None


def _read_images(archive: zipfile.ZipFile, path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    with archive.open("images.npy") as file:
        found, dtype = _header(file)
        if dtype != np.uint8 or len(found) != 4 or not found[0]:
            raise UserError(f"{path}: images of shape {found} and type {dtype}, expected (N, H, W, C) uint8")
        check_size(path, found[1:3], (height, width))
        if found[3] != channels:
            raise UserError(f"{path}: found images of {found[3]} channels, expected {channels}")
        if found[0] * channels * height * width > _MOST:
            raise UserError(f"{path}: found {found[0]} images, expected at most 1 GiB of them")
    return _read(archive, "images.npy")


def _read_labels(archive: zipfile.ZipFile, path: Path, count: int) -> np.ndarray:
    with archive.open("labels.npy") as file:
        found, dtype = _header(file)
    if found != (count,) or dtype.kind not in "iu":
        raise UserError(f"{path}: labels of shape {found} and type {dtype}, expected ({count},) integers")
    return _read(archive, "labels.npy").astype(np.int64)


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        return npy.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that a file holds."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def check_size(path: Path, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """See that (height, width) of what a file holds is as expected.

    Raises:
        UserError: it is not.
    """
    if tuple(found) != expected:
        raise UserError(f"{path}: found {found[0]} x {found[1]} pixels, expected {expected[0]} x {expected[1]}")
