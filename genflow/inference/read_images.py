"""Read labelled pictures from data sets, files, folders and archives, and masks."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.data.pictures import read_picture
from genflow.errors import UserError, nearest
from genflow.inference.read_archive import check_size, read_archive

#: Images of a data set read at a time.
_READ = 256
#: Holes that have a name, as (top, left, height, width) in quarters of the picture's sides.
_HOLES = {
    "left": (0, 0, 4, 2),
    "right": (0, 2, 4, 2),
    "top": (0, 0, 2, 4),
    "bottom": (2, 0, 2, 4),
    "center": (1, 1, 2, 2),
}


def read_dataset(dataset: Dataset, num: int, label: int | None = None) -> tuple[Tensor, Tensor]:
    """The first ``num`` images of a data set, or of its class ``label``, without augmentation.

    Returns:
        (N, C, H, W) images or stored latents, and (N,) int64 labels; N is smaller where there are no more.

    Raises:
        UserError: there is no image of class ``label``.
    """
    images, labels, count = [], [], 0
    for indices in torch.arange(len(dataset)).split(_READ):
        batch = dataset.batch(indices, None)
        chosen = torch.ones(len(indices), dtype=torch.bool) if label is None else batch["labels"] == label
        images.append(batch["images"][chosen])
        labels.append(batch["labels"][chosen])
        count += int(chosen.sum())
        if count >= num:
            break
    if not count:
        raise UserError(f"{type(dataset).__name__} has no image of class {label}")
    return torch.cat(images)[:num], torch.cat(labels)[:num]


def list_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files themselves, and the PNG files of folders in the order of their names.

    Returns:
        The files, and a line for each folder of which something is left out: hidden files, those with another ending,
        and what lies in folders inside it.

    Raises:
        UserError: a path that does not exist, or a folder without PNG files.
    """
    files: list[Path] = []
    lines: list[str] = []
    for path in paths:
        if path.is_dir():
            entries = sorted(path.iterdir())
            inside = [file for file in entries if _is_png(file)]
            others = [file.name for file in entries if not _is_png(file)]
            rest = f"; left out: {len(others)} files or folders ('{others[0]}')" if others else ""
            if not inside:
                raise UserError(f"{path}: this folder holds no .png files{rest}")
            if others:
                lines.append(f"{path}: {len(inside)} pictures{rest}")
            files.extend(inside)
        elif path.exists():
            files.append(path)
        else:
            siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{path}: no such file or folder{nearest(path.name, siblings)}")
    return files, lines


def _is_png(file: Path) -> bool:
    return file.suffix.lower() == ".png" and not file.name.startswith(".") and file.is_file()


def read_images(files: Sequence[Path], shape: tuple[int, int, int], label: int | None = None) -> tuple[Tensor, Tensor]:
    """Read pictures, and archives as :func:`genflow.inference.write_images.write_images` writes them.

    Args:
        files: pictures (see :func:`~genflow.data.pictures.read_picture`), and ``.npz`` archives.
        shape: (C, H, W) that every image must have; colours become grey for one channel.
        label: leave out images of other classes; those of unknown class count as this one.

    Returns:
        (N, C, H, W) float32 in [-1, 1] and (N,) int64 labels: those of the archive, or N of a name that ends in
        ``_classN``; -1 for unknown ones.

    Raises:
        UserError: a file that is something else or holds images of another size, or none is of class ``label``.
    """
    readers = [read_archive if file.suffix.lower() == ".npz" else _read_picture for file in files]
    parts = [read(file, shape) for read, file in zip(readers, files, strict=True)]
    pixels, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    if label is None:
        return images, labels
    labels = labels.where(labels >= 0, label)
    chosen = labels == label
    if not chosen.any():
        raise UserError(f"none of the {len(labels)} pictures is of class {label}")
    return images[chosen], labels[chosen]


def read_mask(spec: str, height: int, width: int) -> Tensor:
    """The (H, W) bool mask, true where pixels are known, that ``spec`` stands for.

    Args:
        spec: the hole: ``top,left,height,width`` in pixels, ``left``, ``right``, ``top``, ``bottom`` (a half) or
            ``center``; or a picture file of the images' size, white where pixels are known.
        height, width: of the images.

    Raises:
        UserError: something else, a box that does not lie inside, or a picture of another size.
    """
    if re.fullmatch(r"-?\d+(,-?\d+){3}", spec):
        box = tuple(int(number) for number in spec.split(","))
    elif spec in _HOLES:
        box = tuple(part * (height, width)[index % 2] // 4 for index, part in enumerate(_HOLES[spec]))
    elif Path(spec).is_file():
        return torch.from_numpy(_open_picture(Path(spec), (1, height, width))[..., 0] >= 128)
    else:
        names = ", ".join(_HOLES)
        expected = f"expected top,left,height,width, one of {names}, or a picture file"
        raise UserError(f"--mask: found '{spec}', {expected}{nearest(spec, _HOLES)}")
    top, left, rows, columns = box
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > height or left + columns > width:
        raise UserError(f"--mask: the box {spec} does not lie inside images of {height} x {width} pixels")
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[top : top + rows, left : left + columns] = False
    return mask


def _read_picture(path: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    named = re.search(r"_class(\d{1,9})$", path.stem)
    return _open_picture(path, shape)[None], np.array([int(named[1]) if named else -1], dtype=np.int64)


def _open_picture(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C) uint8."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"{path}: a picture has 1 or 3 channels, the images of this run have {channels}")
    picture = read_picture(path, channels)
    check_size(path, (picture.height, picture.width), (height, width))
    return np.array(picture).reshape(height, width, channels)
