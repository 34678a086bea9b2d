"""Editing without training: pictures go to noise by a flow, and back by a generator (docs/biflow.md, B18, B19)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from einops import reduce, repeat
from torch import Tensor

from genflow.codecs.base import Codec
from genflow.config.graph import ComponentGraph
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.flow_teachers.base import FlowTeacher
from genflow.inference.read_images import read_dataset, read_images
from genflow.methods.base import Method

#: What the hole of a picture is filled with before it is encoded.
Fill = Literal["zero", "mean"]


@torch.no_grad()
def encode(method: Method, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """The noise that the flow maps pictures to, F(x + noise_std * eps, labels).

    Noise is added since the flow was trained on noisy data only.

    Args:
        method: trained, in evaluation mode, with a ``teacher`` and its ``noise_std``, as BiFlow has them.
        images: (B, C, H, W) as a dataset stores them, before the codec's ``normalize``.
        labels: (B,) int64 classes of the pictures; ``num_classes`` or -1 for "no class".
        draws: the random numbers of the B edits.

    Returns:
        (B, C, H, W).
    """
    return _encode_normalized(method, method.codec.normalize(images), labels, draws)


@torch.no_grad()
def class_edit(
    method: Method,
    images: Tensor,
    old: Tensor,
    new: Tensor,
    draws: Draws,
    guidance: float | Sequence[float] | None = None,
) -> Tensor:
    """Pictures as another class: encoded with the class they have, generated with the one they shall get.

    Args:
        method, images, draws: as in :func:`encode`.
        old, new: (B,) int64 classes. With ``new`` equal to ``old`` this is a plain reconstruction.
        guidance: as in :meth:`genflow.generators.base.Generator.sample`.

    Returns:
        (B, C, H, W) samples in the codec's space.

    Raises:
        UserError: wrong ``guidance``, or samples that are not finite.
    """
    return _generate(method, encode(method, images, old, draws), new, guidance)


@torch.no_grad()
def inpaint(
    method: Method,
    images: Tensor,
    mask: Tensor,
    labels: Tensor,
    draws: Draws,
    guidance: float | Sequence[float] | None = None,
    fill: Fill = "mean",
) -> Tensor:
    """Fill the holes of pictures: the encoding is kept where the mask is true, and new noise elsewhere.

    The flow changes patches as a whole, so a patch with any unknown pixel gets new noise. The known part comes
    back approximately; :func:`paste` restores it. A hole that is everything gives sample number
    ``draws.positions`` of seed ``draws.seed``, as :meth:`genflow.generators.base.Generator.sample` does.

    Args:
        method, images, labels, draws: as in :func:`encode`; the teacher must work in patches.
        mask: (H, W) or (B, H, W) bool, true where pixels are known; of the latents' size or a multiple of it.
        guidance: as in :meth:`genflow.generators.base.Generator.sample`.
        fill: what the hole holds while the picture is encoded, in the codec's normalised space: ``zero``, or
            the ``mean`` of the picture's known values in every channel (zero where nothing is known).

    Returns:
        (B, C, H, W) samples in the codec's space.

    Raises:
        ValueError: the mask is not divisible into the latents' cells.
        UserError: the teacher has no patches, wrong ``guidance``, or samples that are not finite.
    """
    patch_size = getattr(method.teacher, "patch_size", None)
    if patch_size is None:
        raise UserError(f"{type(method.teacher).__name__} does not work in patches, there is nothing to inpaint")
    clean = method.codec.normalize(images)
    known = reduce_mask(mask.to(clean.device), clean.shape[-1]).unsqueeze(-3)
    filling = torch.zeros_like(clean[..., :1, :1])
    if fill == "mean":
        filling = (clean * known).sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp(min=1)
    latent = _encode_normalized(method, torch.where(known, clean, filling), labels, draws)
    patches = reduce_mask(known, clean.shape[-1] // patch_size)
    pixels = "... rows columns -> ... (rows row) (columns column)"
    kept = repeat(patches, pixels, row=patch_size, column=patch_size)
    noise = draws.normal("sampling noise", clean.shape[1:])
    return _generate(method, torch.where(kept, latent, noise), labels, guidance)


def paste(images: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """(B, C, H, W) edited images with the original pixels where the (H, W) or (B, H, W) mask is true."""
    return torch.where(mask.unsqueeze(-3), images, edited)


def reduce_mask(mask: Tensor, side: int) -> Tensor:
    """(..., H, W) bool to (..., side, side): a cell is true if all its pixels are.

    Raises:
        ValueError: the mask is not divisible into so many cells.
    """
    if mask.shape[-2] % side or mask.shape[-1] % side:
        raise ValueError(f"a mask of {tuple(mask.shape[-2:])} does not divide into {side} x {side} cells")
    cells = "... (rows row) (columns column) -> ... rows columns"
    return reduce(mask, cells, "all", rows=side, columns=side)


@torch.no_grad()
def pixel_shape(codec: Codec) -> tuple[int, int, int]:
    """(C, H, W) of the images that a codec decodes to, found by decoding one."""
    device = next((value.device for value in [*codec.parameters(), *codec.buffers()]), None)
    return tuple(codec.decode(torch.zeros(1, *codec.latent_shape, device=device)).shape[1:])


def require_flow(method: Method, source: object) -> None:
    """See that pictures can be edited with a method.

    Raises:
        UserError: it has no flow to encode them with; names ``source``.
    """
    if not isinstance(getattr(method, "teacher", None), FlowTeacher):
        name = type(method).__name__
        raise UserError(f"{source}: a run of {name} has no teacher; editing needs a run of BiFlow")


def load_pictures(
    method: Method, graph: ComponentGraph, files: Sequence[Path], num: int | None, label: int | None = None
) -> tuple[Tensor, Tensor]:
    """What is to be edited.

    Args:
        method: of the run.
        graph: its recipe.
        files: pictures and archives (see :func:`~genflow.inference.read_images.read_images`); none for the recipe's
            data set.
        num: how many, the first ones; None for all files, or 16 of a data set.
        label: of this class alone; None for all.

    Returns:
        (N, C, H, W) pixels in [-1, 1] of files, or images as the data set stores them; (N,) labels, -1 where unknown,
        0 for a model without classes.

    Raises:
        UserError: files that cannot be read, or the recipe's data do not fit the model.
    """
    if files:
        images, labels = read_images(files, pixel_shape(method.codec), label)
        images, labels = images[:num], labels[:num]
    else:
        loader = graph.section("train_dataloader")
        if loader is None:
            raise UserError(f"{graph.source}: train_dataloader: missing; name the images to edit")
        if loader.dataset.image_shape != method.image_shape:
            found = f"its images are {loader.dataset.image_shape}, the model takes {method.image_shape}"
            raise UserError(f"{graph.source}: train_dataloader.dataset: {found}")
        loader.dataset.check_codec(method.codec.description, method.codec.normalize)
        images, labels = read_dataset(loader.dataset, num or 16, label)
    return images, labels if method.num_classes else torch.zeros_like(labels)


def label_pictures(labels: Tensor, given: Sequence[int], classes: int) -> Tensor:
    """(N,) labels of pictures with those that were ``given`` for all, or for each of them.

    Raises:
        UserError: ``given`` has another length, or a label is missing or none of ``classes``.
    """
    if not classes:
        return labels
    if given:
        if len(given) not in (1, len(labels)):
            raise UserError(f"--labels: found {len(given)} classes for {len(labels)} images")
        return torch.tensor(given).expand(len(labels))
    unknown = int((labels < 0).sum())
    if unknown:
        raise UserError(f"--labels: missing, {unknown} of the pictures have no class in their name (_classN)")
    if labels.max() >= classes:
        raise UserError(f"found an image of class {labels.max()}, expected 0 to {classes - 1}")
    return labels


#: Makes (B, *latent_shape) samples of (B, C, H, W) images as a dataset stores them, their (B,) old and new labels, and
#: the draws of the B edits.
BatchEdit = Callable[[Tensor, Tensor, Tensor, Draws], Tensor]


@torch.no_grad()
def edit_pictures(
    method: Method,
    edit: BatchEdit,
    images: Tensor,
    labels: tuple[Tensor, Tensor],
    seed: int,
    stored: bool,
    batch_size: int,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """Edit many pictures, a batch at a time; edit i of a seed is the same whatever the batch size.

    Args:
        method: of the run, where it shall work.
        edit: what to do.
        images: (N, C, H, W), as a dataset stores them, or pixels in [-1, 1].
        labels: (N,) classes of the images, and those that they shall get.
        seed: of the edits.
        stored: whether ``images`` are as a dataset stores them.
        batch_size: images at a time.
        progress: called with the number of images of every batch.

    Returns:
        (N, C, H, W) pixels in [-1, 1] before and after, on the CPU.
    """
    codec, device = method.codec, method.generator.device
    parts = []
    for positions in torch.arange(len(images)).split(batch_size):
        given = images[positions].to(device)
        old, new = (values[positions].to(device) for values in labels)
        draws = Draws(seed, positions.to(device))
        before = _pixels(codec, codec.normalize(given)) if stored else given
        after = _pixels(codec, edit(given if stored else codec.encode(given), old, new, draws))
        parts.append((before.cpu(), after.cpu()))
        progress(len(positions))
    before, after = zip(*parts, strict=True)
    return torch.cat(before), torch.cat(after)


def _pixels(codec: Codec, samples: Tensor) -> Tensor:
    return codec.decode(samples).clamp(-1, 1)


def _encode_normalized(method: Method, clean: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    noisy = clean + method.noise_std * draws.normal("encoding noise", clean.shape[1:])
    return method.teacher(noisy, labels).latent


def _generate(method: Method, noise: Tensor, labels: Tensor, guidance: float | Sequence[float] | None) -> Tensor:
    samples = method.generator(noise, method.generator.condition(labels, guidance))
    if not samples.isfinite().all():  # clipping would hide infinite ones
        raise UserError("the generator returned samples that are not finite")
    return samples
