"""Pictures that ``tools/prepare_data.py images`` has cropped and packed."""

import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.data.packed import PackedRows
from genflow.data.pictures import to_images
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.ranges import LocalPath, NotNegative, Positive
from genflow.registry import DATASETS


@DATASETS.register_module()
class PackedImages(Dataset):
    """Square pictures in 8 bits, memory-mapped; the same training stream as the pictures they were made of.

    Args:
        data_root: the folder.
        image_size: side of the squares, as they were packed.
        num_classes: classes, as many as were packed; None takes their number from the folder, and 0 leaves the labels
            out.
        flip: mirror pictures with probability 1/2.
        channels: 3 or 1, as they were packed.

    Raises:
        UserError: one line that names the folder and what is missing or wrong in it.
    """

    def __init__(
        self,
        data_root: LocalPath,
        image_size: Positive,
        num_classes: NotNegative | None = None,
        flip: bool = False,
        channels: Positive = 3,
    ):
        self._packed = PackedRows(data_root, "images")
        index = self._packed.index
        if index.shape != (image_size, image_size, channels):
            found = f"found pictures of shape {index.shape} (height, width, channels)"
            raise UserError(f"data_root {data_root!r}: {found}, the recipe has {(image_size, image_size, channels)}")
        if num_classes not in (None, 0, index.num_classes):
            raise UserError(f"data_root {data_root!r}: has {index.num_classes} classes, the recipe {num_classes}")
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = index.num_classes if num_classes is None else num_classes
        self.class_names = index.class_names if self.num_classes else ()
        self.flip = flip
        left_out = f"; {len(index.left_out)} left out when they were packed" if index.left_out else ""
        self.notes = [f"data_root {data_root!r}: {len(self)} pictures, {self.num_classes} classes{left_out}"]
        self._labels = torch.from_numpy(self._packed.labels if self.num_classes else 0 * self._packed.labels)

    @classmethod
    def opened(cls, data_root: str) -> "PackedImages":
        """The pictures of a folder, of whatever size they are.

        Raises:
            UserError: as the constructor.
        """
        size, _, channels = PackedRows(data_root, "images").index.shape
        return cls(data_root, size, channels=channels)

    def __len__(self) -> int:
        return len(self._packed)

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Read pictures.

        Raises:
            IndexError: an index outside the data set.
        """
        pixels = self._packed.take(indices.numpy())
        return {"images": to_images(pixels, draws if self.flip else None), "labels": self._labels[indices]}
