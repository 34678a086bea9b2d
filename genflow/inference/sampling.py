"""Sample many images in batches, fast, and write them."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.generators.base import Generator

#: Of one call; an evaluation takes 50,000.
MOST_IMAGES = 10_000_000


def choose_labels(num_classes: int, classes: list[int] | None, num: int | None, per_class: int | None) -> Tensor:
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
        if value is not None and not 1 <= value <= MOST_IMAGES:
            raise UserError(f"{name}: found {value}, expected 1 to {MOST_IMAGES:,}")
    if not num_classes:
        if classes or per_class:
            raise UserError("--labels and --per-class: the generator has no classes")
        return torch.zeros(num or 64, dtype=torch.int64)
    for label in classes or []:
        if not 0 <= label < num_classes:
            raise UserError(f"--labels: found {label}, expected 0 to {num_classes - 1}")
    chosen = torch.tensor(classes if classes else range(num_classes), dtype=torch.int64)
    if per_class is not None:
        if per_class * len(chosen) > MOST_IMAGES:
            raise UserError(f"--per-class: found {per_class} of {len(chosen)} classes, expected {MOST_IMAGES:,} in all")
        return chosen.repeat_interleave(per_class)
    return chosen[torch.arange(num or 64) % len(chosen)]


def sample_images(
    generator: Generator,
    labels: Tensor,
    seed: int,
    guidance: float | Sequence[float] | None,
    batch_size: int,
    device: torch.device | str,
    decode_batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Generate one image per label, batch by batch: (B, C, H, W) in [-1, 1] on the CPU, B <= ``batch_size``.

    All batches are of one size, as compiled networks want it; the last is filled up and cut.

    Args:
        generator: on ``device``.
        labels: (N,) class labels.
        seed, guidance: as in :meth:`genflow.generators.base.Generator.sample`.
        batch_size: samples generated at once, at most.
        decode_batch: samples decoded at once, at most.
        progress: called with the number of images that are done and ``N``.

    Raises:
        UserError: ``batch_size`` or ``decode_batch`` below 1, or ``guidance`` or samples that are not finite.
    """
    for name, value in (("--batch-size", batch_size), ("--decode-batch", decode_batch)):
        if value < 1:
            raise UserError(f"{name}: found {value}, expected at least 1")
    for scale in [guidance] if isinstance(guidance, (int, float)) else guidance or []:
        if not math.isfinite(scale):
            raise UserError(f"--guidance: found {scale}, expected a finite number")
    size = math.ceil(len(labels) / math.ceil(len(labels) / batch_size))
    for first in range(0, len(labels), size):
        part = labels[first : first + size]
        full = torch.cat([part, part[-1:].expand(size - len(part))]).to(device)
        samples = generator.sample(full, seed, guidance, first, decode=False)[: len(part)]
        with torch.no_grad():
            images = [generator.codec.decode(few).clamp(-1, 1).cpu() for few in samples.split(decode_batch)]
        if progress is not None:
            progress(first + len(part), len(labels))
        yield torch.cat(images)
