"""Sample many images in batches, fast, and write them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from genflow.errors import UserError, reason
from genflow.generator import FlowGenerator, Generator, OnePassGenerator
from genflow.images import are_vectors, save_grid, save_png, to_uint8
from genflow.velocity_generator import VelocityGenerator
from genflow.weights import write_atomically

Precision = Literal["float32", "bfloat16"]


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


def accelerate(
    generator: Generator,
    precision: Precision = "float32",
    compile: bool = False,
    decode_precision: Precision = "float32",
) -> Generator:
    """Make a generator that lies on its device faster, in place, at the price of exactness.

    Noise and samples stay float32. So do buffers, such as rotary angles, a flow's affine maps (spec 1.10), and the
    score step after a backbone.

    Args:
        generator: one pass or more through a backbone, or a flow.
        precision: what the network's weights are cast to, and its products are computed in.
        compile: a backbone is compiled with torch.compile, once per batch size, while the first batch waits; on a
            GPU as CUDA graphs. The inverse of a TARFlow is recorded as CUDA graphs, again once per batch size, on
            a GPU only. What concerns the GPU has not been measured on one.
        decode_precision: the same as ``precision`` for the codec.

    Raises:
        UserError: the generator is of another sort, or does not compile; torch.compile fails only when a compiled
            generator is first called.
    """
    one_pass = isinstance(generator, OnePassGenerator)
    known = (OnePassGenerator, VelocityGenerator, FlowGenerator)
    if (compile or precision != "float32") and not isinstance(generator, known):
        raise UserError(f"--precision and --compile: a {type(generator).__name__} has no fast form")
    if precision != "float32":
        _cast(generator.network, precision)
        if one_pass:  # a flow takes float32 tokens and casts them where it may
            generator.counted = _in_precision(generator.counted, precision)
        elif isinstance(generator, VelocityGenerator):
            generator.network.forward = _outputs_in_precision(generator.network.forward, precision)
    if compile and one_pass:
        generator.counted = _compiled(generator.counted, next(generator.network.parameters()).device)
    elif compile and isinstance(generator, VelocityGenerator):
        generator.velocity = _compiled(generator.velocity, next(generator.network.parameters()).device)
    elif compile:
        if not hasattr(generator.network, "capture"):
            raise UserError(f"--compile: the inverse of a {type(generator.network).__name__} cannot be compiled")
        generator.network.capture()
    if decode_precision != "float32":
        _cast(generator.codec, decode_precision)
        generator.codec.decode = _in_precision(generator.codec.decode, decode_precision)
    return generator


def _cast(module: nn.Module, precision: Precision) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.to(getattr(torch, precision))


def _in_precision(function: Callable[..., Tensor], precision: Precision) -> Callable[..., Tensor]:
    """``function`` with its first argument cast, and float32 results."""
    return lambda first, *others: function(first.to(getattr(torch, precision)), *others).float()


def _outputs_in_precision(function: Callable[..., dict[str, Tensor]], precision: Precision) -> Callable:
    """As :func:`_in_precision`, for the outputs of a backbone's heads."""
    return lambda first, *others: {
        name: output.float() for name, output in function(first.to(getattr(torch, precision)), *others).items()
    }


def _compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    compiled = torch.compile(function, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)

    def call(*inputs: Any) -> Tensor:
        try:
            return compiled(*inputs).clone()  # the next replay of a CUDA graph overwrites its output
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(f"--compile: torch.compile failed: {reason(error)}") from error

    return call


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
        seed, guidance: as in :meth:`genflow.generator.Generator.sample`.
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


def check_out(path: Path) -> None:
    """Check that :func:`write_images` can write to ``path``.

    Raises:
        UserError: another suffix, or something of another sort lies there.
    """
    if path.suffix not in ("", ".png", ".npz"):
        raise UserError(f"--out: found '{path}', expected a name ending in .png or .npz, or a folder")
    if path.exists() and path.is_dir() == bool(path.suffix):
        raise UserError(f"--out: '{path}' is a {'folder' if path.is_dir() else 'file'} already")


def write_images(images: Tensor | Iterable[Tensor], labels: Tensor, path: Path, columns: int) -> None:
    """Write images as one grid (``.png``), an archive (``.npz``) or a folder with a picture of each.

    An archive holds ``images`` (N, H, W, C) uint8 and ``labels`` (N,); vectors stay float32. A folder
    gets the pictures of a batch as soon as the batch is there.

    Args:
        images: (N, C, H, W) in [-1, 1], or batches of them in turn.
        labels: (N,).
        path: where to write.
        columns: of a grid.

    Raises:
        UserError: as :func:`check_out`, and what generating the batches raises.
    """
    check_out(path)
    batches = [images] if isinstance(images, Tensor) else images
    if path.suffix == ".png":
        save_grid(torch.cat(list(batches)), path, columns)
    elif path.suffix == ".npz":
        stored = [batch.movedim(1, -1) if are_vectors(batch) else to_uint8(batch) for batch in batches]
        arrays = {"images": torch.cat(stored).numpy(), "labels": labels.numpy()}
        write_atomically(path, lambda temporary: _save_npz(temporary, arrays))
    else:
        pictures = (picture for batch in batches for picture in to_uint8(batch))
        for index, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
            save_png(picture, path / f"{index:06d}_class{label}.png")


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # a name would get another suffix
        np.savez_compressed(file, **arrays)
