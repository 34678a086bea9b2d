"""Write the packed format: shard by shard, shared among processes, going on where a killed run stopped."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_rank, get_world_size

from genflow.data.packed import DTYPES, INDEX, PLAN, Holds, Index, Shard, read_index
from genflow.errors import UserError, shown
from genflow.processes import agreed, decided
from genflow.weights import file_digest, target_of, write_atomically, write_text

#: Bytes of a shard where nothing else is asked: few enough files for a process to hold all of them open.
SHARD_BYTES = 2**30


@dataclass(frozen=True)
class Made:
    """The rows of some samples.

    Args:
        rows: (K, *shape).
        kept: (N,) bool, with K True: which of the samples that were asked for could be read.
        left_out: the names of the others.
    """

    rows: np.ndarray
    kept: np.ndarray
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class Packing:
    """What is to be packed.

    Args:
        holds, shape: as in :class:`~genflow.data.packed.Index`.
        labels: (N,) int64.
        num_classes, class_names: as in :class:`~genflow.data.packed.Index`.
        plan: source, transform and all else that the rows depend on, of plain JSON values. A folder goes on only with
            the plan that it was begun with.
        make: makes the rows of (N,) sample numbers.
        shard_size: samples of a shard; None for about a GiB.
    """

    holds: Holds
    shape: tuple[int, ...]
    labels: np.ndarray
    num_classes: int
    class_names: Sequence[str]
    plan: dict[str, Any]
    make: Callable[[np.ndarray], Made]
    shard_size: int | None = None

    @property
    def size(self) -> int:
        """Samples of a shard."""
        row = int(np.prod(self.shape)) * DTYPES[self.holds].itemsize
        return self.shard_size or max(1, SHARD_BYTES // row)


def write_packed(folder: Path, packing: Packing, progress: Callable[[int, int], None] | None = None) -> Index:
    """Write a packed folder, or what is missing of it. Every process of a group makes some of the shards.

    Args:
        folder: empty, not there, or begun with the same plan.
        packing: what is to be packed.
        progress: called with (samples so far, samples) of this process.

    Returns:
        The index. That of a folder that was whole already is returned as it is.

    Raises:
        UserError: the folder holds something else, was begun with another plan, or no picture could be read.
        OSError: the disk is full; the shards that are there are gone on from.
    """
    plan = {**packing.plan, "samples": len(packing.labels), "shard_size": packing.size}
    plan = json.loads(json.dumps(plan))  # as it is read again
    if agreed(lambda: _begun(folder, plan)) == INDEX:  # all have looked before one writes
        return read_index(folder)

    def begin() -> None:
        _remove_partial(folder)
        write_text(folder / PLAN, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")

    decided(begin)
    starts = range(0, len(packing.labels), packing.size)
    own = list(enumerate(starts))[get_rank() :: get_world_size()]
    total = sum(min(packing.size, len(packing.labels) - start) for _, start in own)

    def write_own() -> None:
        done = 0
        for number, start in own:
            indices = np.arange(start, min(start + packing.size, len(packing.labels)))
            if _read_shard(folder, packing.holds, number) is None:
                _write_shard(folder, packing, number, indices)
            done += len(indices)
            if progress is not None:
                progress(done, total)

    agreed(write_own)
    decided(lambda: _write_index(folder, packing, plan, len(starts)))
    return read_index(folder)


def _begun(folder: Path, plan: dict[str, Any]) -> str | None:
    """``index.json`` for a whole folder, ``plan.json`` for a begun one, None for an empty one or none."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder to write")
    for name in (INDEX, PLAN):
        if (folder / name).is_file():
            found = read_index(folder).plan if name == INDEX else _read_plan(folder / name)
            for key in sorted(found.keys() | plan.keys()):
                before, now = found.get(key, "nothing"), plan.get(key, "nothing")
                if before != now:
                    what = "holds" if name == INDEX else "was begun with"
                    values = f"{key} {shown(before)} there, {shown(now)} now"
                    raise UserError(f"{folder}: {what} other data: {values}; take another folder")
            return name
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others:
        raise UserError(f"{folder}: holds other files ({min(others)!r}), expected a new or empty folder")
    return None


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not readable: {error}") from None
    if not isinstance(plan, dict):
        raise UserError(f"{path}: is no plan of packed data, expected a JSON object")
    return plan


def _remove_partial(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    if folder.is_dir():
        for path in folder.iterdir():
            if target_of(path) is not None:
                path.unlink(missing_ok=True)


def _names(holds: Holds, number: int) -> tuple[str, str, str]:
    return f"{holds}_{number:05d}.npy", f"labels_{number:05d}.npy", f"shard_{number:05d}.json"


def _write_shard(folder: Path, packing: Packing, number: int, indices: np.ndarray) -> None:
    rows_name, labels_name, record = _names(packing.holds, number)
    made = packing.make(indices)
    labels = packing.labels[indices][made.kept].astype(np.int64)
    for name, array in ((rows_name, made.rows), (labels_name, labels)):
        write_atomically(folder / name, lambda path, array=array: _save(path, array))
    digests = (file_digest(folder / rows_name), file_digest(folder / labels_name))
    shard = Shard(rows_name, labels_name, len(labels), *digests)
    # Its record comes last: a shard without one is made again.
    write_text(folder / record, json.dumps({**asdict(shard), "left_out": list(made.left_out)}) + "\n")


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save adds an ending to a name
        np.save(file, array, allow_pickle=False)


def _read_shard(folder: Path, holds: Holds, number: int) -> tuple[Shard, list[str]] | None:
    """A whole shard and what was left out of it; None where it is to be made."""
    rows_name, labels_name, record = _names(holds, number)
    try:
        plain = json.loads((folder / record).read_text(encoding="utf-8"))
        left_out = plain.pop("left_out")
        shard = Shard(**plain)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    digests = ((rows_name, shard.rows_sha256), (labels_name, shard.labels_sha256))
    whole = all((folder / name).is_file() and file_digest(folder / name) == digest for name, digest in digests)
    return (shard, left_out) if whole else None


def _write_index(folder: Path, packing: Packing, plan: dict[str, Any], count: int) -> None:
    read = [_read_shard(folder, packing.holds, number) for number in range(count)]
    missing = [number for number, entry in enumerate(read) if entry is None]
    if missing:
        raise UserError(f"{folder / _names(packing.holds, missing[0])[0]}: was changed while the others were made")
    shards = tuple(shard for shard, _ in read if shard.count)
    left_out = tuple(name for _, names in read for name in names)
    if not shards:
        raise UserError(f"{folder}: none of the {len(packing.labels)} pictures could be read, {left_out[0]!r} first")
    labels = np.concatenate([np.load(folder / shard.labels, allow_pickle=False) for shard in shards])
    counts = np.bincount(labels, minlength=packing.num_classes)[: packing.num_classes]
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        name = packing.class_names[empty[0]] if packing.class_names else int(empty[0])
        raise UserError(f"{folder}: class {name!r} has no picture that could be read")
    index = Index(
        packing.holds,
        packing.shape,
        packing.num_classes,
        tuple(packing.class_names),
        tuple(int(count) for count in counts),
        plan,
        left_out,
        shards,
    )
    write_text(folder / INDEX, index.text())
    for name in (PLAN, *(_names(packing.holds, number)[2] for number in range(count))):
        (folder / name).unlink(missing_ok=True)
