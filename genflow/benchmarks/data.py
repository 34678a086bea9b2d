"""Pictures and latents on their way into training: decoded and cropped, or read from the packed format."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from genflow.benchmarks.timing import compare, facts, interleaved, record
from genflow.data.base import Dataset
from genflow.data.latent_cache import LatentCache
from genflow.data.latent_files import codec_hash
from genflow.data.packed import DTYPES, Holds, PackedRows
from genflow.data.packed_images import PackedImages
from genflow.data.packed_writing import Made, Packing, write_packed
from genflow.data.pictures import center_crop, read_pixels
from genflow.draws import Draws
from genflow.errors import UserError

#: Latents per second and core that reading them should reach.
GOAL = 20_000
#: Width and height of the JPEGs, as many of ImageNet's have, and the side of the squares.
WIDTH, HEIGHT, SIDE = 500, 375, 256
#: (C, H, W) of one latent, as the SD-VAE makes of such a square.
LATENT_SHAPE = (4, 32, 32)
_MEANING = {
    "a": "seconds per picture of GenFlow's reading, decoding and cropping (read_pixels, center_crop)",
    "b": "seconds per picture of the same by Pillow alone",
    "ratio": "b / a; low and high are the extremes over the runs",
    "samples_per_second": "of the median run, on one thread; lowest and highest are those of the extreme runs",
    "limit": "samples per second, median, of Pillow's decoding without a crop, or of copying a batch of rows in memory",
    "share": "samples_per_second / limit",
    "largest_difference": "of torchvision's pixels from Pillow's, of 255",
    "batch": "of the data set, as training gets it: float32, mirrored at random, latents with posterior noise",
    "take": "rows as they are stored, without anything done to them",
    "noise": "random numbers of the posteriors alone, which are a part of batch",
}


@dataclass(frozen=True)
class DataOptions:
    """How much is read, and how often.

    Args:
        repeats: timed runs of each way; a run goes through all samples once, of packed ones in whole batches.
        pictures: JPEGs.
        packed: packed pictures, 192 KiB each on the disk.
        latents: packed latents, 32 KiB each on the disk.
        batch: samples per batch of the packed ones.

    Raises:
        UserError: a number below 1, or a batch larger than what is packed.
    """

    repeats: int = 5
    pictures: int = 64
    packed: int = 2000
    latents: int = 20_000
    batch: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"--{name}: found {value}, expected at least 1")
        if self.batch > min(self.packed, self.latents):
            limits = f"--packed {self.packed} and --latents {self.latents}"
            raise UserError(f"--batch: found {self.batch}, expected at most {limits}")

    @property
    def runs(self) -> int:
        """How often ``advance`` is called: four ways to decode, three of packed pictures, four of latents."""
        return (4 + 3 + 4) * (1 + self.repeats)


def benchmark_data(options: DataOptions, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Time decoding, packed pictures and packed latents, on one thread, of random content in a temporary folder.

    Everything lies in the memory of the operating system when it is timed, so that a disk has no part in it.

    Args:
        options: how much.
        advance: called after every one of the ``options.runs`` runs.

    Returns:
        A benchmark's record with ``decode``, ``packed_images`` and ``latents``, of each the rates as
        :data:`_MEANING` says.

    Raises:
        UserError: GenFlow and Pillow decode another picture, or mmcv cannot be imported.
        OSError: the temporary folder cannot be written.
    """
    with _one_thread(), TemporaryDirectory(prefix="genflow_benchmark_") as folder:
        paths = write_pictures(Path(folder), options.pictures)
        seconds, difference = _time_decoding(paths, options.repeats, advance)
        images = _time_images(Path(folder) / "images", options, advance)
        latents = _time_latents(Path(folder) / "latents", options, advance)
        known = facts(torch.device("cpu"))
        file_bytes = statistics.mean(path.stat().st_size for path in paths)
    known["versions"] |= {name: version(name) for name in ("pillow", "torchvision", "numpy")}
    per_picture = [[run / options.pictures for run in seconds[way]] for way in ("ours", "pillow")]
    return record(
        "data",
        compare(*per_picture),
        known,
        meaning=_MEANING,
        options=vars(options),
        decode=rates(seconds, options.pictures) | {"largest_difference": difference, "file_bytes": file_bytes},
        packed_images=images,
        latents=latents | {"goal": GOAL},
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rates(seconds: Mapping[str, Sequence[float]], samples: int) -> dict[str, dict[str, float]]:
    """Samples per second of every way but ``limit``, and their share of that of ``limit``.

    Args:
        seconds: {way: seconds of its runs}.
        samples: of a run.
    """
    limit = samples / statistics.median(seconds["limit"])
    found = {}
    for way in [way for way in seconds if way != "limit"]:
        low, rate, high = (samples / of(seconds[way]) for of in (max, statistics.median, min))
        found[way] = {"samples_per_second": rate, "lowest": low, "highest": high, "limit": limit, "share": rate / limit}
    return found


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write JPEGs of quality 90: random waves of many lengths, the longer the stronger, as in photographs."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        pixels = np.full((HEIGHT, WIDTH, 3), 127.5, dtype=np.float32)
        for amplitude, step in ((90, 125), (45, 32), (25, 8), (12, 2)):
            coarse = random.uniform(-1, 1, (HEIGHT // step + 1, WIDTH // step + 1, 3)).astype(np.float32)
            wave = functional.interpolate(
                torch.from_numpy(coarse).permute(2, 0, 1)[None], (HEIGHT, WIDTH), mode="bicubic", align_corners=False
            )
            pixels += amplitude * wave[0].permute(1, 2, 0).numpy()
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def crop_ours(path: Path) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8, as :class:`~genflow.data.image_folder.ImageFolder` reads a picture and crops it."""
    return np.array(center_crop(Image.fromarray(read_pixels(path)), SIDE))


def crop_pillow(path: Path) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8, by Pillow alone."""
    with Image.open(path) as picture:
        return np.array(center_crop(picture.convert("RGB"), SIDE))


def crop_torchvision(path: Path) -> Tensor:
    """(3, SIDE, SIDE) uint8, decoded by torchvision and cropped by torch.

    Its pixels differ from Pillow's by a little: another JPEG library, other rounding between the two directions of the
    resizing, and a last odd row or column that is left out when a side is halved, where Pillow averages a bit wider.
    """
    from torchvision.io import ImageReadMode, decode_image, read_file

    pixels = decode_image(read_file(str(path)), mode=ImageReadMode.RGB)[None]
    while min(pixels.shape[2:]) >= 2 * SIDE:
        pixels = functional.avg_pool2d(pixels.float(), 2).round().byte()
    scale = SIDE / min(pixels.shape[2:])
    height, width = (round(side * scale) for side in pixels.shape[2:])
    pixels = functional.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=True)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return pixels[0, :, top : top + SIDE, left : left + SIDE].contiguous()


def decode_only(path: Path) -> None:
    """Decode by Pillow, the limit of all of them."""
    with Image.open(path) as picture:
        picture.load()


def _time_decoding(
    paths: Sequence[Path], repeats: int, advance: Callable[[], None]
) -> tuple[dict[str, list[float]], int]:
    """Seconds of every way for all pictures, and the largest difference of torchvision's pixels."""
    largest_difference = 0
    for path in paths:
        expected = crop_pillow(path)
        if not np.array_equal(crop_ours(path), expected):
            raise UserError(f"{path.name}: GenFlow and Pillow crop it to different pixels")
        other = crop_torchvision(path).permute(1, 2, 0).numpy()
        largest_difference = max(largest_difference, int(np.abs(other.astype(int) - expected).max()))
    ways = {"ours": crop_ours, "pillow": crop_pillow, "torchvision": crop_torchvision, "limit": decode_only}
    return _in_turns(ways, paths, repeats, advance), largest_difference


def _in_turns(
    ways: Mapping[str, Callable[[Any], Any]], parts: Sequence[Any], repeats: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of every way's runs; a run reads all parts."""

    def read_all(read: Callable[[Any], Any]) -> None:
        for part in parts:
            read(part)

    runs = [partial(read_all, way) for way in ways.values()]
    return dict(zip(ways, interleaved(runs, repeats, advance=advance), strict=True))


def _pack(folder: Path, holds: Holds, shape: tuple[int, ...], count: int, plan: dict[str, Any]) -> None:
    """Write random rows: bytes, or means from -1 to 1 beside standard deviations from 0 to 1, of each view."""

    def make(indices: np.ndarray) -> Made:
        random = np.random.default_rng(indices[0])
        if holds == "images":
            rows = random.integers(0, 256, (len(indices), *shape), dtype=np.uint8)
        else:
            rows = random.random((len(indices), *shape), dtype=np.float32).astype(DTYPES[holds])
            rows[:, :, : shape[1] // 2] = 2 * rows[:, :, : shape[1] // 2] - 1
        return Made(rows, np.ones(len(indices), dtype=bool))

    labels = np.zeros(count, dtype=np.int64)
    write_packed(folder, Packing(holds, shape, labels, 1, ["random"], plan, make, shard_size=2000))


def _time_images(folder: Path, options: DataOptions, advance: Callable[[], None]) -> dict[str, Any]:
    shape = (SIDE, SIDE, 3)
    _pack(folder, "images", shape, options.packed, {})
    rows, parts = PackedRows(folder, "images"), _parts(options.packed, options.batch)
    ways = {
        "batch": _batches(PackedImages(str(folder), SIDE, flip=True)),
        "take": rows.take,
        "limit": _copying(options.batch, shape, "images"),
    }
    return rates(_in_turns(ways, parts, options.repeats, advance), parts.size)


def _time_latents(folder: Path, options: DataOptions, advance: Callable[[], None]) -> dict[str, Any]:
    codec, view = {"type": "random"}, (2 * LATENT_SHAPE[0], *LATENT_SHAPE[1:])
    _pack(folder, "latents", (2, *view), options.latents, {"codec": codec, "codec_hash": codec_hash(codec)})
    rows, parts = PackedRows(folder, "latents"), _parts(options.latents, options.batch)
    ways = {
        "batch": _batches(LatentCache(str(folder), LATENT_SHAPE)),
        "take": lambda part: rows.take(part, part % 2),
        "noise": lambda part: Draws(0, torch.from_numpy(part)).normal("posterior", LATENT_SHAPE),
        "limit": _copying(options.batch, view, "latents"),
    }
    return rates(_in_turns(ways, parts, options.repeats, advance), parts.size)


def _parts(count: int, batch: int) -> np.ndarray:
    """(count // batch, batch) sample numbers in random order."""
    return np.random.default_rng(0).permutation(count)[: count // batch * batch].reshape(-1, batch)


def _batches(data: Dataset) -> Callable[[np.ndarray], Any]:
    """What reads a batch as training does; the sample numbers are its places in the stream as well."""
    return lambda part: data.batch(torch.from_numpy(part), Draws(0, torch.from_numpy(part)))


def _copying(batch: int, shape: tuple[int, ...], holds: Holds) -> Callable[[Any], None]:
    """What copies as many bytes as a batch of rows has, from one warm array to another."""
    source, target = (np.ones((batch, *shape), DTYPES[holds]) for _ in range(2))
    return lambda _: np.copyto(target, source)


def data_table(report: dict[str, Any]) -> Table:
    """The rates of all ways, with their limits."""
    table = Table(title=f"samples per second on one thread, batches of {report['options']['batch']}")
    for title in ("", "median", "lowest to highest", "limit", "share of it"):
        table.add_column(title, justify="right" if title else "left")
    for part in ("decode", "packed_images", "latents"):
        for way, entry in report[part].items():
            if isinstance(entry, dict):
                extremes = f"{entry['lowest']:,.0f} to {entry['highest']:,.0f}"
                figures = (f"{entry['samples_per_second']:,.0f}", extremes, f"{entry['limit']:,.0f}")
                table.add_row(f"{part.replace('_', ' ')}, {way}", *figures, f"{entry['share']:.1%}")
    difference = f"largest difference of torchvision's pixels: {report['decode']['largest_difference']} of 255"
    table.caption = f"goal for latents: {report['latents']['goal']:,}; {difference}"
    return table
