"""Editing without training: pictures go to noise by BiFlow's flow and come back by its generator (spec 3.8)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from genflow.codecs.base import Codec
from genflow.draws import Draws
from genflow.errors import UserError
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
    kept = patches.repeat_interleave(patch_size, -2).repeat_interleave(patch_size, -1)
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
    return mask.unflatten(-1, (side, -1)).unflatten(-3, (side, -1)).all(-1).all(-2)


@torch.no_grad()
def pixel_shape(codec: Codec) -> tuple[int, int, int]:
    """(C, H, W) of the images that a codec decodes to, found by decoding one."""
    device = next((value.device for value in [*codec.parameters(), *codec.buffers()]), None)
    return tuple(codec.decode(torch.zeros(1, *codec.latent_shape, device=device)).shape[1:])


@torch.no_grad()
def edit_in_batches(
    codec: Codec,
    images: Tensor,
    edit: Callable[[Tensor, Tensor], Tensor],
    stored: bool,
    batch_size: int,
    device: torch.device | str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Edit many pictures, a batch at a time.

    Args:
        codec: the generator's, on ``device``.
        images: (N, C, H, W), as a dataset stores them, or pixels in [-1, 1].
        edit: makes (B, *latent_shape) samples of (B, C, H, W) images as a dataset stores them and of their (B,)
            numbers, both on ``device``.
        stored: whether ``images`` are as a dataset stores them.
        batch_size: images at a time.
        device: where to edit.

    Yields:
        (B, C, H, W) pixels in [-1, 1] before and after, on the CPU.
    """
    for positions in torch.arange(len(images)).split(batch_size):
        given = images[positions].to(device)
        before = _pixels(codec, codec.normalize(given)) if stored else given
        after = _pixels(codec, edit(given if stored else codec.encode(given), positions.to(device)))
        yield before.cpu(), after.cpu()


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
