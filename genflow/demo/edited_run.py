"""What the page edits: a picture of the training data or of a file, painted holes, and variants of an edit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from genflow.demo.limits import LARGEST_SEED, whole_number
from genflow.demo.sampled_run import SampledRun
from genflow.errors import UserError
from genflow.inference import editing

#: Edits of the picture, each with random numbers of its own.
VARIANTS = 5
#: Training pictures that can be taken, for those before are read as well.
MOST_TAKEN = 1000
_EMPTY = "there is no picture; upload a PNG, JPEG or WebP file, or take one of the training data"


@dataclass(frozen=True)
class Edited:
    """A picture and what became of it.

    Args:
        before: (C, H, W) in [-1, 1], of inpainting without the hole.
        after: (VARIANTS, C, H, W).
    """

    before: Tensor
    after: Tensor


def can_edit(subject: SampledRun) -> bool:
    """Whether the run has a flow to encode pictures with, and shows grey or coloured ones."""
    try:
        editing.require_flow(subject.method, subject.name)
    except UserError:
        return False
    return subject.image_shape[0] in (1, 3)


def can_inpaint(subject: SampledRun) -> bool:
    """Whether the run's flow works in patches, so that a hole has noise of its own."""
    return getattr(subject.method.teacher, "patch_size", None) is not None


def training_picture(subject: SampledRun, number: object, label: int | None = None) -> tuple[Tensor, int]:
    """A picture that the run was trained on.

    Args:
        subject: the run.
        number: of the picture, from 0, among those of its class.
        label: the class; None for all.

    Returns:
        (C, H, W) in [-1, 1], and its class.

    Raises:
        UserError: the data cannot be read, or there are fewer pictures.
    """
    index = whole_number("number of the training picture", number, 0, MOST_TAKEN - 1)
    method = subject.method
    images, labels = editing.load_pictures(method, subject.run.graph, [], index + 1, label)
    if len(images) <= index:
        raise UserError(f"number of the training picture: found {index}, expected at most {len(images) - 1}")
    with torch.no_grad():
        stored = images[index:][:1].to(subject.generator.device)
        picture = method.codec.decode(method.codec.normalize(stored)).clamp(-1, 1)[0].cpu()
    return picture, int(labels[index])


def fit_picture(picture: Image.Image | None, shape: tuple[int, int, int]) -> Tensor:
    """A picture as the run's images are: its middle, in their size and colours, over white where it is transparent.

    What :func:`~genflow.inference.write_images.tile` enlarged comes back as it was.

    Args:
        picture: any; a transparent margin around it does not count.
        shape: (C, H, W), C being 1 or 3.

    Returns:
        (C, H, W) in [-1, 1].

    Raises:
        UserError: there is none, or it is transparent or white all over, as a canvas that shows no file.
    """
    if picture is None:
        raise UserError(_EMPTY)
    channels, height, width = shape
    cut = picture.convert("RGBA").crop(_extent(picture))
    page = Image.new("RGBA", cut.size, "white")
    page.alpha_composite(cut)
    if page.convert("L").getextrema() == (255, 255):
        raise UserError(_EMPTY)
    pixels = _fit(page.convert("L" if channels == 1 else "RGB"), height, width).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def fit_hole(picture: Image.Image, layers: Sequence[Image.Image], shape: tuple[int, int, int]) -> Tensor:
    """What was painted over a picture, in the run's pixels: those of which half is covered.

    Args:
        picture: as for :func:`fit_picture`.
        layers: of its size, transparent where nothing was painted.
        shape: (C, H, W) of the run's images.

    Returns:
        (H, W) bool, true in the hole.
    """
    _, height, width = shape
    hole = torch.zeros(height, width, dtype=torch.bool)
    for layer in layers:
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 0))
        hole |= torch.from_numpy(_fit(painted.crop(_extent(picture)), height, width)) >= 128
    return hole


def _extent(picture: Image.Image) -> tuple[int, int, int, int]:
    extent = picture.convert("RGBA").getchannel("A").getbbox()
    if extent is None:
        raise UserError(_EMPTY)
    return extent


def _fit(picture: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The largest middle of those sides; a pixel is the mean of what becomes it, without a filter's overshoot."""
    return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.BOX))


def change_class(subject: SampledRun, picture: Tensor, old: int, new: int, seed: object, guidance: object) -> Edited:
    """Show a picture as another class.

    Args:
        subject: the run.
        picture: (C, H, W) in [-1, 1].
        old, new: classes.
        seed, guidance: as the page has them.

    Raises:
        UserError: as :func:`genflow.inference.editing.class_edit`, or numbers out of range.
    """
    scale = _scale(subject, guidance)

    def edit(batch, old, new, draws):
        return editing.class_edit(subject.method, batch, old, new, draws, scale)

    before, after = _edit(subject, edit, picture, (old, new), seed)
    return Edited(before[0], after)


def fill_hole(subject: SampledRun, picture: Tensor, hole: Tensor, label: int, seed: object, guidance: object) -> Edited:
    """Fill a hole; the pixels around it are put back.

    Args:
        subject: the run.
        picture: (C, H, W) in [-1, 1].
        hole: (H, W) bool.
        label: class of the picture.
        seed, guidance: as the page has them.

    Raises:
        UserError: there is no hole; or as :func:`genflow.inference.editing.inpaint`, or numbers out of range.
    """
    if not hole.any():
        raise UserError("there is no hole; paint one over the picture, at least half of one of its pixels")
    scale = _scale(subject, guidance)

    def edit(batch, old, new, draws):
        return editing.inpaint(subject.method, batch, ~hole, old, draws, scale)

    before, after = _edit(subject, edit, picture, (label, label), seed)
    masked = editing.paste(before, torch.zeros_like(before), ~hole)
    return Edited(masked[0], editing.paste(before, after, ~hole))


def _edit(
    subject: SampledRun, edit: editing.BatchEdit, picture: Tensor, labels: tuple[int, int], seed: object
) -> tuple[Tensor, Tensor]:
    number = whole_number("seed", seed, 0, LARGEST_SEED)
    classes = subject.method.num_classes
    for label in labels:
        whole_number("class", label, 0, max(classes - 1, 0))
    columns = tuple(torch.full((VARIANTS,), label, dtype=torch.int64) for label in labels)
    images = picture.expand(VARIANTS, *picture.shape)
    return editing.edit_pictures(subject.method, edit, images, columns, number, False, VARIANTS)


def _scale(subject: SampledRun, guidance: object) -> float | None:
    return None if subject.guidance is None else subject.guidance.check(guidance)
