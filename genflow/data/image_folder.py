"""Pictures as people have them: in a folder per class, in one folder, or with their labels in a file."""

import os
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.data.folder_listing import Listing, is_address, place_of
from genflow.data.label_files import number_classes, read_labels
from genflow.data.pictures import Colour, colour_values, read_pixels, to_images
from genflow.data.pipeline import Pipeline, TransformSlot
from genflow.data.skipped import list_skipped
from genflow.draws import Draws
from genflow.errors import UserError, nearest
from genflow.ranges import Interval, Length, LocalPath, NotNegative, Positive
from genflow.registry import DATASETS

#: How many times as long as the other a side may be; resized, such a picture would not fit in memory.
_LONGEST = 100
#: Unreadable pictures in a row after which it is the disk's fault and not theirs.
_TRIES = 1000


@DATASETS.register_module()
class ImageFolder(Dataset):
    """Pictures under a folder, cropped to squares as ADM does, at random (docs/drifting.md, D16), or by a pipeline.

    With ``labels: folders`` class k is the k-th folder, by name, that holds pictures, in folders inside it too; with
    ``none`` there are no classes; with a file they are those of :func:`~genflow.data.label_files.read_labels`. Samples
    are sorted by class, then by path. :class:`~genflow.data.folder_listing.Listing` says what is a picture; the rest is
    left out, and counted in :attr:`notes`. :func:`~genflow.data.pictures.read_pixels` says how pictures are read.

    Images are square, since the backbones take square ones: their position embeddings and windows have one side.

    Args:
        data_root: the folder, or its address (``s3://bucket/pictures``), for which mmengine has a backend.
        image_size: side S of the squares.
        num_classes: classes, which must be as many as are found; None for as many as are found, 0 for none: every label
            is then 0, which means "no class".
        pipeline: transforms that a picture goes through, to S x S pixels of ``channels``; it comes in three colours.
            None for the crop and mirroring that ``flip`` and ``crop_area`` say, of grey pictures for one channel.
        channels: 3 for colours, which grey pictures have too, or 1 for grey.
        labels: ``folders``, ``none``, or a .json or .csv file, as a path in ``data_root`` or from the root.
        background: colour behind transparent pixels: a CSS name, or [red, green, blue] from 0 to 255.
        unreadable: what to do at a picture that cannot be read: ``stop`` with a line that names it, or ``skip`` it and
            take the next readable one of its class. Training lists those that it skipped in ``unreadable.txt``.
        flip: mirror pictures with probability 1/2.
        crop_area: train on random boxes with a share of the picture's area between these, resized to the square
            (see :func:`~genflow.data.crops.draw_boxes`); None for the middle of the picture.

    Raises:
        UserError: one line that names what is missing or wrong in the folder, the labels, or the pipeline.
    """

    def __init__(
        self,
        data_root: LocalPath,
        image_size: Positive,
        num_classes: NotNegative | None = None,
        pipeline: list[TransformSlot] | None = None,
        channels: Literal[1, 3] = 3,
        labels: Annotated[str, Length()] = "folders",
        background: Colour = "white",
        unreadable: Literal["stop", "skip"] = "stop",
        flip: bool = False,
        crop_area: Interval | None = None,
    ):
        self.data_root = data_root
        self.image_size = image_size
        self.image_shape = (channels, image_size, image_size)
        self.background = colour_values(background)
        self.skips = unreadable == "skip"
        self.class_names: list[str] = []
        self.pipeline = Pipeline(
            self._transforms(flip, crop_area) if pipeline is None else pipeline, (image_size, image_size, channels)
        )
        if pipeline is not None and (flip or crop_area is not None):
            given = "flip" if flip else "crop_area"
            raise UserError(f"{given}: found together with pipeline, expected one of them: put Flip or RandomBox there")
        #: {what: (how many, the first of them)} of all that lies in ``data_root`` and is not read.
        self.left_out: dict[str, tuple[int, str]] = {}
        samples, rest = self._samples(labels, num_classes)
        #: (N,) int64, the class of every sample, ascending.
        self.labels = np.array([label for label, _ in samples], dtype=np.int64)
        self.num_classes = 0 if num_classes == 0 or labels == "none" else int(self.labels[-1]) + 1
        # One text of bytes, because loader processes would each get a copy of a list of texts.
        self._paths = b"".join(path for _, path in samples)
        self._ends = np.cumsum([len(path) for _, path in samples])
        self._listed: set[str] = set()
        classes = f"{self.num_classes} classes" if self.num_classes else "without classes"
        self.notes = [f"data_root {data_root!r}: {len(self)} pictures, {classes}{rest}"]
        if pipeline is not None:  # a mistake in it shows before anything trains
            self.read(0, Draws(0, torch.zeros(1, dtype=torch.int64)))

    def _transforms(self, flip: bool, crop_area: tuple[float, float] | None) -> list[TransformSlot]:
        from genflow.data.transforms import CenterCrop, Flip, RandomBox, ToGrey  # here, for they import OpenCV

        size = self.image_size
        crop = CenterCrop(size) if crop_area is None else RandomBox(size, crop_area)
        return [*([ToGrey()] if self.image_shape[0] == 1 else []), crop, *([Flip()] if flip else [])]

    def _samples(self, labels: str, num_classes: int | None) -> tuple[list[tuple[int, bytes]], str]:
        """Label and path of every sample, sorted, and what to say of the rest; sets the names of the classes."""
        if labels.lower().endswith((".json", ".csv")):
            return self._of_file(labels, num_classes)
        if labels not in ("folders", "none"):
            hint = nearest(labels, ("folders", "none"))
            raise UserError(f"labels: found {labels!r}, expected folders, none, or a .json or .csv file{hint}")
        listing = Listing(self.data_root)
        self.left_out = listing.left_out
        if not listing.pictures:
            raise UserError(f"data_root {self.data_root!r} has no pictures{listing}")
        if labels == "none" and num_classes:
            raise UserError(f"labels: none: has no classes, the recipe has num_classes {num_classes}")
        if labels == "none" or num_classes == 0:
            return sorted((0, os.fsencode(path)) for path in listing.pictures), str(listing)
        return self._of_folders(listing, num_classes)

    def _of_folders(self, listing: Listing, num_classes: int | None) -> tuple[list[tuple[int, bytes]], str]:
        self.class_names = sorted({path.split("/")[0] for path in listing.pictures if "/" in path})
        if not self.class_names:
            found = f"has {len(listing.pictures)} pictures and no folders of classes"
            raise UserError(f"data_root {self.data_root!r} {found}; 'labels: none' trains without classes{listing}")
        numbers = {name: number for number, name in enumerate(self.class_names)}
        listing.leave_out("pictures beside the folders of classes", sorted(p for p in listing.pictures if "/" not in p))
        listing.leave_out("folders without pictures", (name for name in listing.folders if name not in numbers))
        if num_classes not in (None, len(numbers)):
            have = f"has {len(numbers)} folders of classes, the recipe has {num_classes}"
            raise UserError(f"data_root {self.data_root!r} {have}{listing}")
        samples = [(numbers[path.split("/")[0]], os.fsencode(path)) for path in listing.pictures if "/" in path]
        return sorted(samples), str(listing)

    def _of_file(self, labels: str, num_classes: int | None) -> tuple[list[tuple[int, bytes]], str]:
        file = labels if os.path.isabs(labels) or is_address(labels) else place_of(self.data_root, labels)
        named = read_labels(file)
        rest = ""
        if not is_address(self.data_root):  # there a picture that is missing shows when it is read
            there = set(Listing(self.data_root).pictures)
            for name in named:
                if name not in there and not os.path.isfile(place_of(self.data_root, name)):
                    raise UserError(f"labels {file!r}: {name!r} is not in data_root {self.data_root!r}")
            unnamed = sorted(there.difference(named))
            if unnamed:
                self.left_out = {"pictures without a label": (len(unnamed), unnamed[0])}
                rest = f"; left out: {len(unnamed)} pictures without a label ({unnamed[0]!r})"
        if num_classes == 0:
            return sorted((0, os.fsencode(name)) for name in named), rest
        numbers, self.class_names = number_classes(named, file, num_classes)
        return sorted((number, os.fsencode(name)) for name, number in numbers.items()), rest

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Where picture ``index`` lies: a path, or an address."""
        start = self._ends[index - 1] if index else 0
        return place_of(self.data_root, os.fsdecode(self._paths[start : self._ends[index]]))

    def read(self, index: int, draws: Draws | None = None) -> np.ndarray:
        """Picture ``index``, transformed.

        Args:
            index: in [0, len).
            draws: of one sample; None reads without augmentation.

        Returns:
            (S, S, C) uint8.

        Raises:
            UserError: it cannot be read, or a transform fails; the line names the file.
        """
        number, pixels = self._readable(index)
        return self.pipeline(pixels, self.path(number), int(self.labels[index]), number, draws)

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Read and transform pictures.

        Raises:
            UserError: as :meth:`read`.
            IndexError: an index outside the data set.
        """
        labels = self.labels[indices.numpy()]
        own = [None] * len(indices) if draws is None else [draws[row : row + 1] for row in range(len(indices))]
        pixels = np.stack([self.read(*sample) for sample in zip(indices.tolist(), own, strict=True)])
        return {"images": to_images(pixels, None), "labels": torch.from_numpy(labels)}

    def _readable(self, index: int) -> tuple[int, np.ndarray]:
        """Picture ``index``, or if that is skipped the next readable one of its class: number and pixels."""
        first = None
        for number in self._same_class(index):
            path = self.path(number)
            try:
                pixels = read_pixels(path, self.background)
                height, width = pixels.shape[:2]
                if max(height, width) > _LONGEST * min(height, width):
                    expected = f"expected no side over {_LONGEST} times as long as the other"
                    raise UserError(f"{path}: found {width} x {height} pixels, {expected}")
                return number, pixels
            except UserError as error:
                if not self.skips:
                    raise
                first = first or error
                self._list_skipped(str(error))
        raise UserError(f"{first}; nor can those that follow it in its class be read")

    def _same_class(self, index: int) -> Iterator[int]:
        """``index`` and those that follow it in its class, whose first one follows the last."""
        start, end = np.searchsorted(self.labels, [self.labels[index], self.labels[index] + 1]).tolist()
        for offset in range(min(end - start, _TRIES)):
            yield start + (index - start + offset) % (end - start)

    def _list_skipped(self, line: str) -> None:
        if self.skipped_file is None or line in self._listed:
            return
        self._listed.add(line)
        list_skipped(self.skipped_file, line)
