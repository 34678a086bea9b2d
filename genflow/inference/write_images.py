"""Images to pictures."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from PIL import Image
from torch import Tensor

from genflow.errors import UserError
from genflow.weights import write_atomically

#: (C, H, W) of a point in the plane.
POINT_SHAPE = (2, 1, 1)

#: Images of a grid, which lies in memory.
_MOST_IN_GRID = 20_000

#: The names of the pictures in a folder that we wrote.
_OWN = re.compile(r"\d{6,}_class-?\d+\.png")


def are_vectors(images: Tensor) -> bool:
    """Whether (B, C, H, W) images are vectors: one pixel with several channels."""
    return images.shape[1] > 1 and images.shape[2:] == (1, 1)


def to_uint8(images: Tensor) -> Tensor:
    """(B, C, H, W) images in [-1, 1] to (B, H, W, C) uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) images in [-1, 1] to pictures: grey ones of one channel, coloured ones of three.

    >>> [picture] = to_pil(torch.zeros(1, 3, 2, 4))
    >>> picture.size, picture.mode, picture.getpixel((0, 0))
    ((4, 2), 'RGB', (128, 128, 128))

    Raises:
        UserError: they have another shape, or other channels: points in the plane, or samples that are not decoded.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images: found the shape {tuple(images.shape)}, expected (B, 1, H, W) or (B, 3, H, W)")
    return [_picture(image) for image in to_uint8(images)]


def _picture(image: Tensor) -> Image.Image:
    """One (H, W, C) uint8 image; one channel is grey."""
    array = image.numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def save_png(image: Tensor, path: Path) -> None:
    """Write one (H, W, C) uint8 image; one channel is grey."""
    picture = _picture(image)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def save_grid(images: Tensor, path: str | Path, columns: int, smallest_side: int = 64) -> None:
    """Write (B, C, H, W) images in [-1, 1] as a grid, small ones enlarged to ``smallest_side`` pixels.

    Images of one pixel with several channels are vectors, which :func:`save_points` draws.
    """
    path = Path(path)
    if are_vectors(images):
        save_points(images, path)
        return
    save_png(tile(images, columns, smallest_side), path)


def tile(images: Tensor, columns: int, smallest_side: int = 64) -> Tensor:
    """(B, C, H, W) images in [-1, 1] to one (H, W, 3) uint8 grid; each pixel of small ones becomes a square."""
    from torchvision.utils import make_grid  # imported here so that `import genflow` stays light

    factor = max(1, -(-smallest_side // images.shape[-1]))
    pixels = "image channel row column -> image channel (row down) (column right)"
    enlarged = repeat(images.clamp(-1, 1), pixels, down=factor, right=factor)
    grid = make_grid(enlarged, nrow=columns, padding=max(2, factor // 2), pad_value=1.0)
    return to_uint8(grid.unsqueeze(0))[0]


def save_points(points: Tensor, path: Path) -> None:
    """Write (B, D, 1, 1) vectors, in [-1, 1], as one square scatter picture, D > 2 in their principal plane."""
    from matplotlib.figure import Figure  # imported here since few pictures need it

    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    axes = figure.add_subplot(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    points = points.flatten(1).cpu()
    if points.shape[1] > 2:  # a plane through the origin
        points = points @ torch.linalg.eigh(points.T @ points).eigenvectors[:, -2:]
    x, y = points.unbind(1)
    axes.scatter(x, y, s=2, alpha=0.5, linewidths=0)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))


def save_rows(rows: Sequence[Tensor], path: Path, columns: int = 16) -> None:
    """Write tensors of (N, C, H, W) images in [-1, 1] as the rows of one picture; image i is column i.

    More than ``columns`` images go on in further bands, each with all the rows.
    """
    bands = []
    for first in range(0, len(rows[0]), columns):
        band = torch.stack([row[first : first + columns] for row in rows])
        missing = min(columns, len(rows[0])) - band.shape[1]
        bands.append(torch.nn.functional.pad(band, (0, 0) * 3 + (0, missing), value=1.0).flatten(0, 1))
    save_grid(torch.cat(bands), path, min(columns, len(rows[0])))


def check_out(
    path: Path, suffixes: Sequence[str] = (".png", ".npz", ""), option: str = "--out", overwrite: bool = False
) -> None:
    """Check where pictures shall go.

    Args:
        path: the place.
        suffixes: what its name may end in; an empty one stands for a folder.
        option: what the user calls it.
        overwrite: whether what lies there may be replaced, see :func:`write_images`.

    Raises:
        UserError: another suffix, or something lies there that would be replaced or mixed with what is new, or
            something of another sort.
    """
    if path.suffix not in suffixes:
        expected = " or ".join(suffix for suffix in suffixes if suffix)
        folder = ", or a folder" if "" in suffixes and len(suffixes) > 2 else " or a folder" if "" in suffixes else ""
        raise UserError(f"{option}: found '{path}', expected a name ending in {expected}{folder}")
    if path.exists() and path.is_dir() == bool(path.suffix):
        raise UserError(f"{option}: '{path}' is a {'folder' if path.is_dir() else 'file'} already")
    if overwrite or not path.exists():
        return
    if path.suffix:
        raise UserError(f"{option}: '{path}' is there already; --overwrite replaces it")
    if any(path.iterdir()):
        removed = "--overwrite replaces the pictures NNNNNN_classN.png in it"
        raise UserError(f"{option}: '{path}' is there already and not empty; {removed}")


def check_apart(path: Path, inputs: Sequence[Path], option: str) -> None:
    """See that an output, a file or a folder, is not where the inputs lie.

    Raises:
        UserError: it is.
    """
    taken = inputs if path.suffix else [file.parent for file in inputs]
    if path.resolve() in {file.resolve() for file in taken}:
        raise UserError(f"{option}: '{path}' holds what is to be edited; name another place")


def write_images(
    images: Tensor | Iterable[Tensor], labels: Tensor, path: Path, columns: int = 1, overwrite: bool = False
) -> None:
    """Write images as one grid (``.png``), an archive (``.npz``) or a folder with a picture of each.

    An archive holds ``images`` (N, H, W, C) uint8 and ``labels`` (N,); vectors stay float32. A folder
    gets the pictures of a batch as soon as the batch is there.

    Args:
        images: (N, C, H, W) in [-1, 1], or batches of them in turn.
        labels: (N,).
        path: where to write.
        columns: of a grid.
        overwrite: replace what lies there; of a folder, the pictures with names such as ours, and nothing else.

    Raises:
        UserError: as :func:`check_out`, and what generating the batches raises.
    """
    check_out(path, overwrite=overwrite)
    if path.suffix == ".png" and len(labels) > _MOST_IN_GRID:
        raise UserError(f"{path}: {len(labels)} images are too many for one grid; a folder or an .npz holds them")
    batches = [images] if isinstance(images, Tensor) else images
    if path.suffix == ".png":
        save_grid(torch.cat(list(batches)), path, columns)
    elif path.suffix == ".npz":
        stored = [batch.movedim(1, -1) if are_vectors(batch) else to_uint8(batch) for batch in batches]
        arrays = torch.cat(stored).numpy(), labels.numpy()
        write_atomically(path, lambda temporary: _save_npz(temporary, *arrays))
    else:
        for old in [file for file in path.glob("*.png") if _OWN.fullmatch(file.name)]:
            old.unlink()
        pictures = (picture for batch in batches for picture in to_uint8(batch))
        for index, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
            save_png(picture, path / f"{index:06d}_class{label}.png")


def _save_npz(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    with open(path, "wb") as file:  # a name would get another suffix
        np.savez_compressed(file, images=images, labels=labels)
