"""Pictures, and latents of pictures, to packed data."""

import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genflow.codecs.base import Codec
from genflow.data.latent_files import codec_hash
from genflow.data.packed import Index
from genflow.data.packed_writing import Made, Packing, write_packed
from genflow.data.pictures import to_images
from genflow.errors import UserError
from genflow.preparation.sources import Source

Progress = Callable[[int, int], None]
#: Pictures that are read ahead at a time.
_CHUNK = 16
_REMEDY = "--unreadable skip leaves such pictures out"


class Reader:
    """Reads many pictures, in processes of its own if there are any.

    Args:
        source: the pictures.
        workers: processes; 0 reads in this one.
        unreadable: at a picture that cannot be read ``stop``, or ``skip`` it.
    """

    def __init__(self, source: Source, workers: int, unreadable: Literal["stop", "skip"]):
        self.source = source
        self.unreadable = unreadable
        self._pool = None
        if workers:
            # Not by a fork of this process, which would copy the threads' locks.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            self._pool = context.Pool(workers, initializer=_set_source, initargs=(source,))

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def read(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray | None, str]]:
        """(number, pixels, "") in the order of ``indices``; (number, None, why) for one that is skipped.

        Raises:
            UserError: one cannot be read and is not to be skipped.
        """
        numbers = indices.tolist()
        results = (
            map(partial(_read, self.source), numbers)
            if self._pool is None
            else self._pool.imap(_read_there, numbers, chunksize=_CHUNK)
        )
        for number, (pixels, problem) in zip(numbers, results, strict=True):
            if problem and self.unreadable == "stop":
                raise UserError(f"{problem}; {_REMEDY}")
            yield number, pixels, problem


def _read(source: Source, index: int) -> tuple[np.ndarray | None, str]:
    try:
        return source.read(index), ""
    except UserError as error:
        return None, str(error)


_SOURCE: list[Source] = []


def _set_source(source: Source) -> None:
    _SOURCE[:] = [source]


def _read_there(index: int) -> tuple[np.ndarray | None, str]:
    return _read(_SOURCE[0], index)


def pack_images(reader: Reader, out: Path, shard_size: int | None = None, progress: Progress | None = None) -> Index:
    """Crop pictures once and pack them as bytes.

    Raises:
        UserError, OSError: as :func:`~genflow.data.packed_writing.write_packed`, or a picture cannot be read.
    """
    source = reader.source
    shape = source.read(_first_readable(reader)).shape

    def make(indices: np.ndarray) -> Made:
        rows, kept, left_out = np.empty((len(indices), *shape), dtype=np.uint8), np.ones(len(indices), dtype=bool), []
        for place, (_, pixels, problem) in enumerate(reader.read(indices)):
            if pixels is None:
                kept[place] = False
                left_out.append(problem)
            else:
                rows[place - len(left_out)] = pixels
        return Made(rows[: len(rows) - len(left_out)], kept, left_out)

    return write_packed(out, _packing(reader, "images", shape, make, {}, shard_size), progress)


def pack_latents(
    reader: Reader,
    codec: Codec,
    out: Path,
    batch_size: int = 64,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: torch.device | str = "cpu",
    shard_size: int | None = None,
    progress: Progress | None = None,
) -> Index:
    """Encode pictures and their mirror images, and pack the moments of their posteriors.

    Args:
        reader: of pictures of the codec's size.
        codec: which has weights.
        out: the folder.
        batch_size: pictures encoded at once; it does not change what is packed but for rounding.
        precision: of the products.
        device: where to encode.
        shard_size, progress: as in :func:`~genflow.data.packed_writing.write_packed`.

    Raises:
        UserError, OSError: as :func:`pack_images`, or the codec has no latents.
    """
    codec = codec.to(device).eval()
    first = to_images(reader.source.read(_first_readable(reader))[None], None).to(device)
    with torch.no_grad():
        shape = (2, *codec.posterior(first).shape[1:])

    @torch.no_grad()
    def moments(pictures: list[np.ndarray]) -> np.ndarray:
        images = to_images(np.stack(pictures), None).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            views = [codec.posterior(view) for view in (images, images.flip(3))]
        found = torch.stack(views, dim=1).float()
        if not found.isfinite().all():
            raise UserError("the codec's latents are not finite")
        return found.half().cpu().numpy()

    def make(indices: np.ndarray) -> Made:
        rows, kept, left_out, waiting = [], [], [], []
        for _, pixels, problem in reader.read(indices):
            kept.append(pixels is not None)
            if pixels is None:
                left_out.append(problem)
                continue
            waiting.append(pixels)
            if len(waiting) == batch_size:
                rows.append(moments(waiting))
                waiting = []
        if waiting:
            rows.append(moments(waiting))
        stacked = np.concatenate(rows) if rows else np.empty((0, *shape), dtype=np.float16)
        return Made(stacked, np.array(kept), left_out)

    made = {"codec": codec.description, "codec_hash": codec_hash(codec.description), "precision": precision}
    return write_packed(out, _packing(reader, "latents", shape, make, made, shard_size), progress)


def _packing(
    reader: Reader,
    holds: Literal["images", "latents"],
    shape: tuple[int, ...],
    make: Callable[[np.ndarray], Made],
    made: dict[str, Any],
    shard_size: int | None,
) -> Packing:
    source = reader.source
    plan = {**source.description, **made, "unreadable": reader.unreadable}
    return Packing(holds, shape, source.labels, source.num_classes, source.class_names, plan, make, shard_size)


def _first_readable(reader: Reader) -> int:
    """The first picture that can be read; with ``stop`` the first one must be."""
    for number in range(len(reader.source.labels)):
        _, problem = _read(reader.source, number)
        if not problem:
            return number
        if reader.unreadable == "stop":
            raise UserError(f"{problem}; {_REMEDY}")
    raise UserError(f"none of the {len(reader.source.labels)} pictures can be read")
