"""Images to pictures."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from genflow.weights import write_atomically

#: (C, H, W) of a point in the plane.
POINT_SHAPE = (2, 1, 1)


def are_vectors(images: Tensor) -> bool:
    """Whether (B, C, H, W) images are vectors: one pixel with several channels."""
    return images.shape[1] > 1 and images.shape[2:] == (1, 1)


def to_uint8(images: Tensor) -> Tensor:
    """(B, C, H, W) images in [-1, 1] to (B, H, W, C) uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def save_png(image: Tensor, path: Path) -> None:
    """Write one (H, W, C) uint8 image; one channel is grey."""
    array = image.numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def save_grid(images: Tensor, path: Path, columns: int, smallest_side: int = 64) -> None:
    """Write (B, C, H, W) images in [-1, 1] as a grid, small ones enlarged to ``smallest_side`` pixels.

    Images of one pixel with several channels are vectors, which :func:`save_points` draws.
    """
    if are_vectors(images):
        save_points(images, path)
        return
    factor = max(1, -(-smallest_side // images.shape[-1]))
    enlarged = images.clamp(-1, 1).repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    grid = make_grid(enlarged, nrow=columns, padding=max(2, factor // 2), pad_value=1.0)
    save_png(to_uint8(grid.unsqueeze(0))[0], path)


def save_points(points: Tensor, path: Path) -> None:
    """Write (B, D, 1, 1) vectors, in [-1, 1], as one square scatter picture, D > 2 in their principal plane."""
    from matplotlib.figure import Figure  # imported here since few pictures need it

    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    axes = figure.add_subplot(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    points = points.flatten(1).cpu()
    if points.shape[1] > 2:  # a plane through the origin
        points = points @ torch.linalg.eigh(points.T @ points).eigenvectors[:, -2:]
    axes.scatter(*points.unbind(1), s=2, alpha=0.5, linewidths=0)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))
