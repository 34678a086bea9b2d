"""Pictures in a folder per class, as ImageNet comes."""

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genflow.data.base import Dataset
from genflow.data.crops import draw_boxes
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.ranges import LocalPath, Positive, Share
from genflow.registry import DATASETS

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


@DATASETS.register_module()
class ImageFolder(Dataset):
    """``data_root/CLASS/PICTURE``, cropped to squares as ADM does, or at random (docs/drifting.md, D16).

    Classes and their pictures are in the order of their names, class k being the k-th folder. Pictures are files
    ending in .jpeg, .jpg, .png, .webp or .bmp, of any mode, read as RGB.

    Args:
        data_root: the folder.
        image_size: side S of the squares, see :func:`center_crop`.
        num_classes: classes, as many as ``data_root`` has folders.
        flip: mirror pictures with probability 1/2.
        crop_area: train on random boxes with a share of the picture's area between these, resized to the square
            (see :func:`~genflow.data.crops.draw_boxes`); None for the middle of the picture.

    Raises:
        UserError: one line that names ``data_root`` and what is missing or wrong in it.
    """

    def __init__(
        self,
        data_root: LocalPath,
        image_size: Positive,
        num_classes: Positive = 1000,
        flip: bool = False,
        crop_area: tuple[Share, Share] | None = None,
    ):
        self.data_root = data_root
        self.image_size = image_size
        self.image_shape = (3, image_size, image_size)
        self.num_classes = num_classes
        self.flip = flip
        self.crop_area = crop_area
        try:
            with os.scandir(data_root) as entries:
                self.classes = sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise UserError(f"data_root {data_root!r} is not a readable folder: {error.strerror}") from None
        if len(self.classes) != num_classes:
            found = len(self.classes)
            raise UserError(f"data_root {data_root!r} has {found} folders of classes, the recipe has {num_classes}")
        # Arrays of bytes, because loader processes would each get a copy of lists of text.
        self._names = [self._list(name) for name in self.classes]
        self._ends = np.cumsum([len(names) for names in self._names])

    def _list(self, name: str) -> np.ndarray:
        """The names of a class's pictures, sorted."""
        with os.scandir(os.path.join(self.data_root, name)) as entries:
            names = sorted(os.fsencode(entry.name) for entry in entries if _is_picture(entry.name))
        if not names:
            raise UserError(f"data_root {self.data_root!r} has no pictures of class {name!r}")
        return np.array(names)

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
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        if self.flip and draws is not None:
            mirrored = (draws.uniform("flip") < 0.5).view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(3), images)
        return {"images": images.contiguous(), "labels": torch.from_numpy(labels)}

    def _read(self, label: int, index: int, draws: Draws | None) -> np.ndarray:
        """Sample ``index`` as (S, S, 3) bytes."""
        # Counted from the end of its class.
        name = os.fsdecode(self._names[label][index - self._ends[label]])
        path = os.path.join(self.data_root, self.classes[label], name)
        try:
            with Image.open(path) as picture:
                return np.asarray(self._crop(picture.convert("RGB"), draws))
        except Exception as error:  # decoders fail in many ways
            raise UserError(f"{path}: not a readable picture: {error}") from None

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


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)
