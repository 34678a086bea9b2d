"""Where the pictures of a packed data set come from: folders, archives, data sets of torchvision."""

import contextlib
import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mmengine.dist import barrier, is_main_process
from PIL import Image

from genflow.data.image_folder import ImageFolder
from genflow.data.pictures import center_crop, require_file
from genflow.errors import UserError, reason
from genflow.processes import decided
from genflow.weights import naming_disk

#: The archives that are read, by the ending of their names.
ARCHIVES = (".zip", ".tar")
_UNPACKED = ".unpacked"
#: {name: (class of torchvision.datasets, whether it takes ``train=`` and not ``split=``)}
TORCHVISION = {"cifar10": ("CIFAR10", True), "cifar100": ("CIFAR100", True), "celeba": ("CelebA", False)}


class Source(Protocol):
    """Pictures to pack; it travels to processes of its own.

    Args of the attributes: ``labels`` (N,) int64; ``class_names`` in their order, none where there are no classes;
    ``description``, plain JSON values that say which pictures these are.
    """

    labels: np.ndarray
    num_classes: int
    class_names: Sequence[str]
    description: dict[str, Any]

    def read(self, index: int) -> np.ndarray:
        """Picture ``index`` as (S, S, C) uint8; UserError names one that cannot be read."""
        raise NotImplementedError

    def path(self, index: int) -> str:
        """What messages call it."""
        raise NotImplementedError


class FolderSource(ImageFolder):
    """Pictures under a folder; arguments as those of :class:`~genflow.data.image_folder.ImageFolder`."""

    def __init__(self, data_root: str, image_size: int, **options: Any):
        super().__init__(data_root, image_size, **options)
        digest = hashlib.sha256()
        for index in range(len(self)):
            relative = self.path(index).removeprefix(data_root)
            digest.update(f"{relative}\0{self.labels[index]}\n".encode(errors="surrogateescape"))
        self.description = {"pictures": digest.hexdigest(), "transform": f"ADM's crop to {self.image_shape}", **options}


class TorchvisionSource:
    """A data set of torchvision, cropped as ADM does.

    Args:
        name: one of :data:`TORCHVISION`.
        image_size: side of the squares.
        root: torchvision's folder of data sets.
        split: ``train``, ``valid`` or ``test``, as far as the data set has it.
        download: fetch it if it is not there.
        channels: 3 or 1.

    Raises:
        UserError: it is not there, or not as torchvision expects it.
    """

    def __init__(self, name: str, image_size: int, root: Path, split: str, download: bool, channels: int = 3):
        from torchvision import datasets

        title, by_train = TORCHVISION[name]
        if by_train and split not in ("train", "test"):
            raise UserError(f"--split: found {split}, {title} has train and test")
        options: dict[str, Any] = {"train": split == "train"} if by_train else {"split": split, "target_type": "attr"}
        try:
            self._data = getattr(datasets, title)(root, download=download, **options)
        except (RuntimeError, OSError, ImportError) as error:
            hint = "" if download else "; --download fetches it"
            raise UserError(f"{root}: {title} cannot be read: {reason(error)}{hint}") from None
        self._shape, self._name = (image_size, channels), f"{title} {split}"
        self.class_names = list(getattr(self._data, "classes", []))
        self.num_classes = len(self.class_names)
        labels = self._data.targets if self.num_classes else [0] * len(self._data)
        self.labels = np.asarray(labels, dtype=np.int64)
        transform = f"ADM's crop to {(channels, image_size, image_size)}"
        self.description = {"pictures": self._name, "transform": transform}

    def read(self, index: int) -> np.ndarray:
        side, channels = self._shape
        try:
            picture: Image.Image = self._data[index][0]
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path(index)}: not a readable picture: {error}") from None
        pixels = center_crop(picture.convert("RGB" if channels == 3 else "L"), side)
        return np.asarray(pixels).reshape(side, side, channels)

    def path(self, index: int) -> str:
        return f"{self._name}, number {index}"


@contextlib.contextmanager
def unpacked(source: Path, out: Path) -> Iterator[Path]:
    """The folder of pictures that ``source`` is, or that an archive is unpacked to for the time being.

    Args:
        source: a folder, or a .zip or .tar file.
        out: where the packed data will lie; the archive is unpacked inside.

    Raises:
        UserError: it is neither, is damaged, or a name in it leaves the folder.
    """
    if source.suffix.lower() not in ARCHIVES:
        yield source
        return
    require_file(source, "archive")
    folder = out / _UNPACKED
    decided(lambda: _unpack(source, folder))
    try:
        yield folder
    finally:
        barrier()
        if is_main_process():
            shutil.rmtree(folder, ignore_errors=True)


def _unpack(source: Path, folder: Path) -> None:
    if folder.exists():  # a killed run's, which may be a part
        shutil.rmtree(folder)
    with naming_disk(folder):
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
        try:
            if source.suffix.lower() == ".zip":
                with zipfile.ZipFile(source) as archive:
                    _check_size(source, sum(entry.file_size for entry in archive.infolist()), free)
                    archive.extractall(folder)  # names that lead outside are led back inside
            else:
                with tarfile.open(source, "r:") as archive:
                    _check_size(source, sum(entry.size for entry in archive.getmembers() if entry.isfile()), free)
                    _extract(archive, folder)
        except (zipfile.BadZipFile, tarfile.TarError, RuntimeError, NotImplementedError, EOFError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"{source}: not a readable archive: {reason(error)}") from None


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the regular files; links could lead anywhere. tarfile's own filters are younger than Python 3.11.0."""
    for entry in archive.getmembers():
        path = (folder / entry.name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{entry.name!r} leads outside")
        if entry.isfile():
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(entry) as content, open(path, "wb") as file:
                shutil.copyfileobj(content, file)


def _check_size(source: Path, size: int, free: int) -> None:
    if size > free:
        raise UserError(f"{source}: takes {size / 2**30:.1f} GiB unpacked, of which {free / 2**30:.1f} GiB are free")
