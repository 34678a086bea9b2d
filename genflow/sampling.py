"""Sample many images in batches and write them."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.generator import Generator
from genflow.images import save_grid, save_png, to_uint8
from genflow.weights import write_atomically


def choose_labels(
    num_classes: int, classes: list[int] | None, num: int | None, per_class: int | None
) -> Tensor:
    """The label of every image: ``classes`` in turn up to ``num``, or ``per_class`` of each in order.

    Args:
        num_classes: of the generator; 0 if it is unconditional.
        classes: the classes asked for; None for all.
        num: images in all; None is 64.
        per_class: images of each class; excludes ``num``.

    Returns:
        (B,) int64.

    Raises:
        UserError: a class that the generator does not have, or numbers below 1.
    """
    if num is not None and per_class is not None:
        raise UserError("--num and --per-class exclude each other")
    for name, value in (("--num", num), ("--per-class", per_class)):
        if value is not None and value < 1:
            raise UserError(f"{name}: found {value}, expected at least 1")
    if not num_classes:
        if classes or per_class:
            raise UserError("--labels and --per-class: the generator has no classes")
        return torch.zeros(num or 64, dtype=torch.int64)
    for label in classes or []:
        if not 0 <= label < num_classes:
            raise UserError(f"--labels: found {label}, expected 0 to {num_classes - 1}")
    chosen = torch.tensor(classes if classes else range(num_classes), dtype=torch.int64)
    if per_class is not None:
        return chosen.repeat_interleave(per_class)
    return chosen[torch.arange(num or 64) % len(chosen)]


def sample_images(
    generator: Generator,
    labels: Tensor,
    seed: int,
    guidance: float | None,
    batch_size: int,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Generate one image per label: (B, C, H, W) in [-1, 1] on the CPU.

    Raises:
        UserError: ``batch_size`` below 1, or ``guidance`` or samples that are not finite.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size: found {batch_size}, expected at least 1")
    if guidance is not None and not math.isfinite(guidance):
        raise UserError(f"--guidance: found {guidance}, expected a finite number")
    parts = []
    for first in range(0, len(labels), batch_size):
        part = labels[first : first + batch_size].to(device)
        parts.append(generator.sample(part, seed, guidance, first).cpu())
        if progress is not None:
            progress(first + len(part), len(labels))
    return torch.cat(parts)


def check_out(path: Path) -> None:
    """Check that :func:`write_images` can write to ``path``.

    Raises:
        UserError: another suffix, or something of another sort lies there.
    """
    if path.suffix not in ("", ".png", ".npz"):
        raise UserError(f"--out: found '{path}', expected a name ending in .png or .npz, or a folder")
    if path.exists() and path.is_dir() == bool(path.suffix):
        raise UserError(f"--out: '{path}' is a {'folder' if path.is_dir() else 'file'} already")


def write_images(images: Tensor, labels: Tensor, path: Path, columns: int) -> None:
    """Write images as one grid (``.png``), an archive (``.npz``) or a folder with a picture of each.

    An archive holds ``images`` (B, H, W, C) uint8 and ``labels`` (B,).

    Raises:
        UserError: as :func:`check_out`.
    """
    check_out(path)
    if path.suffix == ".png":
        save_grid(images, path, columns)
    elif path.suffix == ".npz":
        arrays = {"images": to_uint8(images).numpy(), "labels": labels.numpy()}
        write_atomically(path, lambda temporary: _save_npz(temporary, arrays))
    else:
        for index, (image, label) in enumerate(zip(to_uint8(images), labels.tolist(), strict=True)):
            save_png(image, path / f"{index:06d}_class{label}.png")


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # a name would get another suffix
        np.savez_compressed(file, **arrays)
