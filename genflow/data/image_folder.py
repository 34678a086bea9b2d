"""Pictures in a folder per class, as ImageNet comes."""

import os
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genflow.data.base import Dataset
from genflow.data.crops import draw_boxes
from genflow.data.pictures import read_picture, to_images
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.ranges import Interval, LocalPath, Positive
from genflow.registry import DATASETS

_LONGEST = 100
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


@DATASETS.register_module()
class ImageFolder(Dataset):
    """``data_root/CLASS/PICTURE``, cropped to squares as ADM does, or at random (docs/drifting.md, D16).

    Classes and their pictures are in the order of their names, class k being the k-th folder that holds pictures; its
    name is a name of the class. Pictures are files ending in .jpeg, .jpg, .png, .webp or .bmp. What else lies there
    (hidden files and folders, folders without pictures, folders inside those of classes, files with other endings) is
    left out, and counted in :attr:`notes`. :func:`~genflow.data.pictures.read_picture` says how pictures are read.

    Images are square, since the backbones take square ones: their position embeddings and windows have one side.

    Args:
        data_root: the folder.
        image_size: side S of the squares, see :func:`center_crop`.
        num_classes: classes, as many as ``data_root`` has folders with pictures.
        flip: mirror pictures with probability 1/2.
        crop_area: train on random boxes with a share of the picture's area between these, resized to the square
            (see :func:`~genflow.data.crops.draw_boxes`); None for the middle of the picture.
        channels: 3 for colours, which grey pictures have too, or 1 for grey, to which colours are turned.

    Raises:
        UserError: one line that names ``data_root`` and what is missing or wrong in it.
    """

    def __init__(
        self,
        data_root: LocalPath,
        image_size: Positive,
        num_classes: Positive = 1000,
        flip: bool = False,
        crop_area: Interval | None = None,
        channels: Literal[1, 3] = 3,
    ):
        self.data_root = data_root
        self.image_size = image_size
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.flip = flip
        self.crop_area = crop_area
        self.class_names: list[str] = []
        #: {what: (how many, the first of them)} of all that lies in ``data_root`` and is not read.
        self.left_out: dict[str, tuple[int, str]] = {}
        # Arrays of bytes, because loader processes would each get a copy of lists of text.
        self._names: list[np.ndarray] = []
        for name in self._folders():
            pictures = self._pictures(name)
            if pictures:
                self.class_names.append(name)
                self._names.append(np.array(pictures))
            else:
                self._leave_out("folders without pictures", [name])
        self._check_classes()
        self._ends = np.cumsum([len(names) for names in self._names])
        self.notes = [f"data_root {data_root!r}: {len(self)} pictures, {num_classes} classes{self._rest()}"]

    def _folders(self) -> list[str]:
        """The names of folders that may hold a class, sorted."""
        folders, *rest = _listed(self.data_root, f"data_root {self.data_root!r}")
        self._leave_out("files beside the folders of classes", [name for names in rest for name in names])
        self._leave_out("hidden folders", filter(_is_hidden, folders))
        return [name for name in folders if not _is_hidden(name)]

    def _pictures(self, name: str) -> list[bytes]:
        """The names of a class's pictures, sorted."""
        folder = os.path.join(self.data_root, name)
        folders, files, rest = _listed(folder, f"data_root {self.data_root!r}: {folder!r}")
        self._leave_out("folders inside those of classes", folders, name)
        self._leave_out("links to nothing, pipes or devices", rest, name)
        self._leave_out("hidden files", filter(_is_hidden, files), name)
        pictures = []
        for file in files:
            ending = os.path.splitext(file)[1].lower()
            if _is_hidden(file):
                continue
            if ending in _SUFFIXES:
                pictures.append(os.fsencode(file))
            else:
                self._leave_out(f"files ending in {ending}" if ending else "files without an ending", [file], name)
        return sorted(pictures)

    def _leave_out(self, what: str, names: Iterable[str], folder: str = "") -> None:
        for name in names:
            count, first = self.left_out.get(what, (0, os.path.join(folder, name)))
            self.left_out[what] = (count + 1, first)

    def _rest(self) -> str:
        kinds = [f"{count} {what} ({first!r})" for what, (count, first) in self.left_out.items()]
        return f"; left out: {', '.join(kinds)}" if kinds else ""

    def _check_classes(self) -> None:
        found = len(self.class_names)
        if found != self.num_classes:
            have = f"has {found} folders of classes, the recipe has {self.num_classes}"
            raise UserError(f"data_root {self.data_root!r} {have}{self._rest()}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Read and crop pictures.

        Raises:
            UserError: one of them cannot be read; the line names its file.
            IndexError: an index outside the data set.
        """
        labels = np.searchsorted(self._ends, indices.numpy(), side="right")
        own = [None] * len(indices) if draws is None else [draws[row : row + 1] for row in range(len(indices))]
        pixels = np.stack([self._read(*sample) for sample in zip(labels, indices.numpy(), own, strict=True)])
        return {"images": to_images(pixels, draws if self.flip else None), "labels": torch.from_numpy(labels)}

    def _read(self, label: int, index: int, draws: Draws | None) -> np.ndarray:
        """Sample ``index`` as (S, S, C) bytes."""
        # Counted from the end of its class.
        name = os.fsdecode(self._names[label][index - self._ends[label]])
        path = os.path.join(self.data_root, self.class_names[label], name)
        picture = read_picture(path, self.image_shape[0])
        if max(picture.size) > _LONGEST * min(picture.size):  # resized, it would not fit in memory
            found = f"found {picture.width} x {picture.height} pixels"
            raise UserError(f"{path}: {found}, expected no side over {_LONGEST} times as long as the other")
        return np.asarray(self._crop(picture, draws)).reshape(self.image_size, self.image_size, self.image_shape[0])

    def _crop(self, picture: Image.Image, draws: Draws | None) -> Image.Image:
        if draws is None or self.crop_area is None:
            return center_crop(picture, self.image_size)
        boxes = draw_boxes(draws, picture.height, picture.width, self.crop_area, use="picture crop")
        top, left, height, width = boxes[0].tolist()
        side = (self.image_size, self.image_size)
        return picture.resize(side, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


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


def _listed(folder: str, where: str) -> tuple[list[str], list[str], list[str]]:
    """The names of a folder's folders, its files, and of the rest in it, each sorted; links count as what they name.

    Raises:
        UserError: it cannot be read; ``where`` says what it is.
    """
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found[0 if entry.is_dir() else 1 if entry.is_file() else 2].append(entry.name)
    except OSError as error:
        raise UserError(f"{where} is not a readable folder: {error.strerror}") from None
    return tuple(sorted(names) for names in found)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
