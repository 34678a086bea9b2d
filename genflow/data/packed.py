"""The packed format: a data set as shards of arrays with checksums, and an index that says what they are.

A folder holds ``index.json``, and of every shard the rows (``images_00000.npy`` or ``latents_00000.npy``) and their
labels (``labels_00000.npy``). The index is written last, so a folder without it is an unfinished one
(:mod:`genflow.data.packed_writing`).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genflow.errors import UserError, kind_of, shown
from genflow.weights import file_digest

INDEX, PLAN = "index.json", "plan.json"
FORMAT, VERSION = "genflow packed data", 1
Holds = Literal["images", "latents"]
#: The type of the rows.
DTYPES = {"images": np.dtype(np.uint8), "latents": np.dtype(np.float16)}


@dataclass(frozen=True)
class Shard:
    """One pair of files.

    Args:
        rows, labels: their names.
        count: samples.
        rows_sha256, labels_sha256: of the files, in hexadecimal digits.
    """

    rows: str
    labels: str
    count: int
    rows_sha256: str
    labels_sha256: str


@dataclass(frozen=True)
class Index:
    """What a packed folder says of itself.

    Args:
        holds: ``images``: uint8 (H, W, C) a row, or ``latents``: float16 (2, 2C, H, W) a row, the mean and standard
            deviation of the picture's posterior and of its mirror image's.
        shape: of a row.
        num_classes: classes; 0 without.
        class_names: their names in their order; empty without.
        class_counts: samples of each class.
        plan: where the samples come from and what was done to them: source, transform, codec and its hash.
        left_out: pictures that could not be read and were left out.
        shards: in the order of the samples.
    """

    holds: Holds
    shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    plan: dict[str, Any]
    left_out: tuple[str, ...]
    shards: tuple[Shard, ...]

    @property
    def count(self) -> int:
        """Samples."""
        return sum(shard.count for shard in self.shards)

    def text(self) -> str:
        """As ``index.json`` has it."""
        plain = {"format": FORMAT, "version": VERSION, "count": self.count, **asdict(self)}
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def is_packed(folder: Path) -> bool:
    """Whether a folder is packed, or begun."""
    return any((folder / name).is_file() for name in (INDEX, PLAN))


def read_index(folder: Path) -> Index:
    """Read ``index.json``.

    Raises:
        UserError: the folder is not packed, not finished, or its index is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        unfinished = (folder / PLAN).is_file()
        why = "its preparation is not finished; run it again" if unfinished else f"there is no {INDEX}"
        raise UserError(f"{folder}: is no packed data set: {why}; tools/prepare_data.py makes one")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not readable: {error}") from None
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise UserError(f"{path}: is not the index of packed data, expected 'format': '{FORMAT}'")
    if plain.get("version") != VERSION:
        raise UserError(f"{path}: found version {shown(plain.get('version'))}, this program reads {VERSION}")
    try:
        index = _index(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged: {type(error).__name__}: {error}") from None
    if index.count != plain.get("count") or index.count < 1:
        raise UserError(f"{path}: is damaged: count {shown(plain.get('count'))}, its shards have {index.count}")
    return index


def _index(plain: dict[str, Any]) -> Index:
    """The checked index; raises KeyError, TypeError or ValueError."""

    def natural(value: Any) -> int:
        if type(value) is not int or value < 0:
            raise ValueError(f"found {shown(value)}, expected a number from 0 on")
        return value

    def name(value: Any) -> str:
        if not isinstance(value, str) or Path(value).name != value:
            raise ValueError(f"found {shown(value)}, expected the name of a file")
        return value

    def text(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"found {kind_of(value)}, expected text")
        return value

    if plain["holds"] not in DTYPES or not isinstance(plain["plan"], dict):
        raise ValueError(f"it holds {shown(plain['holds'])}, expected images or latents, and a plan")
    shape = tuple(natural(side) for side in plain["shape"])
    if len(shape) != {"images": 3, "latents": 4}[plain["holds"]]:
        raise ValueError(f"shape {shape} is not that of {plain['holds']}")
    readers = {"rows": name, "labels": name, "count": natural, "rows_sha256": text, "labels_sha256": text}
    shards = [Shard(**{name: read(shard[name]) for name, read in readers.items()}) for shard in plain["shards"]]
    classes, names = natural(plain["num_classes"]), tuple(text(entry) for entry in plain["class_names"])
    if names and len(names) != classes:
        raise ValueError(f"{len(names)} names of {classes} classes")
    counts = tuple(natural(count) for count in plain["class_counts"])
    left_out = tuple(text(entry) for entry in plain["left_out"])
    return Index(plain["holds"], shape, classes, names, counts, plain["plan"], left_out, tuple(shards))


class PackedRows:
    """The rows and labels of a packed folder, memory-mapped and read in any order.

    Args:
        folder: the folder.
        holds: what is wanted.

    Raises:
        UserError: it holds something else, a shard is missing, or has not the size that the index says.
    """

    def __init__(self, folder: str | Path, holds: Holds):
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        if self.index.holds != holds:
            raise UserError(f"{folder}: holds {self.index.holds}, expected {holds}")
        self.labels = np.concatenate([self._labels(shard) for shard in self.index.shards])
        self._ends = np.cumsum([shard.count for shard in self.index.shards])
        self._rows = self._open()

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the file; a loader process opens the files itself.
        return {**self.__dict__, "_rows": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = self._open()

    def take(self, indices: np.ndarray, views: np.ndarray | None = None) -> np.ndarray:
        """Copy rows, in the order of ``indices``; of latents one view each.

        Args:
            indices: (B,) integers in [0, len).
            views: (B,) 0 for the picture, 1 for its mirror image.

        Returns:
            (B, *shape) rows, or (B, *shape[1:]) views.

        Raises:
            IndexError: an index outside the data set.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices from {indices.min()} to {indices.max()}, the data set has {len(self)} samples")
        shape = self.index.shape if views is None else self.index.shape[1:]
        taken = np.empty((len(indices), *shape), dtype=DTYPES[self.index.holds])
        order = np.argsort(indices, kind="stable")  # so that every shard is read once, and forwards
        shards = np.searchsorted(self._ends, indices[order], side="right")
        bounds = np.flatnonzero(np.diff(shards, prepend=-1, append=len(self._ends)))
        for first, last in pairwise(bounds):
            places, shard = order[first:last], shards[first]
            local = indices[places] - (self._ends[shard] - self.index.shards[shard].count)
            keys = zip(local.tolist()) if views is None else zip(local.tolist(), views[places].tolist(), strict=True)
            for place, key in zip(places.tolist(), keys, strict=True):  # an array of keys would copy the rows twice
                taken[place] = self._rows[shard][key]
        return taken

    def _open(self) -> list[np.ndarray]:
        kind, shape = DTYPES[self.index.holds], self.index.shape
        files = [_open(self.folder / shard.rows, kind, (shard.count, *shape)) for shard in self.index.shards]
        return [np.asarray(file) for file in files]  # which finds a row in half the time that a memory map takes

    def _labels(self, shard: Shard) -> np.ndarray:
        path = self.folder / shard.labels
        labels = np.array(_open(path, np.dtype(np.int64), (shard.count,)))
        highest = max(self.index.num_classes, 1) - 1
        if len(labels) and not 0 <= labels.min() <= labels.max() <= highest:
            raise UserError(f"{path}: has labels from {labels.min()} to {labels.max()}, expected 0 to {highest}")
        return labels


def _open(path: Path, kind: np.dtype, shape: Sequence[int]) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: is missing; tools/prepare_data.py verify says what else is")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError) as error:
        raise UserError(f"{path}: is truncated or not an array: {error}") from None
    if array.dtype != kind or array.shape != tuple(shape):
        found = f"found an array of {array.dtype} of shape {array.shape}"
        raise UserError(f"{path}: {found}, the index says {kind} of shape {tuple(shape)}")
    return array


def faults(folder: Path) -> Iterator[str]:
    """A line for every file of a packed folder that is not as its index says; all are read, for the checksums.

    Raises:
        UserError: as :func:`read_index`.
    """
    index = read_index(folder)
    counts: np.ndarray | None = np.zeros(index.num_classes, dtype=np.int64)
    for shard in index.shards:
        for name, digest in ((shard.rows, shard.rows_sha256), (shard.labels, shard.labels_sha256)):
            path = folder / name
            if not path.is_file():
                yield f"{path}: is missing"
            elif file_digest(path) != digest:
                yield f"{path}: is damaged, or another file: its SHA-256 is not that of the index"
            elif name == shard.rows or not index.num_classes:
                continue
            elif counts is not None:
                counts = counts + np.bincount(np.load(path, allow_pickle=False), minlength=index.num_classes)
                continue
            counts = None  # of a part they say nothing
    if counts is not None and index.num_classes and tuple(counts) != index.class_counts:
        yield f"{folder / INDEX}: its class_counts are not those of the labels"
