"""How published figures are measured: what may be compared with what."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genflow.draws import Draws


@dataclass(frozen=True)
class Convention:
    """One way to measure generators.

    Args:
        name: in recipes.
        rounding: how images in [-1, 1] become bytes: ``truncated``: clip(127.5 x + 128) cut down to integers;
            ``rounded``: clip((x + 1) / 2 * 255) to the nearest.
        labels: of the images: ``balanced``, class i mod K for image i; ``uniform``, drawn; or ``validation``, as the
            validation pictures have them.
        inception: the resize of :class:`~genflow.feature_encoders.inception.Inception` that goes with it.
        reference: which statistics the published figures are measured against.
        beside: published figures that one measured this way may stand beside.
    """

    name: str
    rounding: Literal["truncated", "rounded"]
    labels: Literal["balanced", "uniform", "validation"]
    inception: Literal["tensorflow1", "half_pixel"]
    reference: str
    beside: str

    def to_bytes(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] to bytes of the same shape."""
        if self.rounding == "truncated":
            return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)
        return ((images.float().clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)

    def choose_labels(self, count: int, classes: int, seed: int, validation: Tensor | None = None) -> Tensor:
        """Choose the labels of the images 0, 1, ...

        Args:
            count: images.
            classes: of the generator.
            seed: of labels that are drawn.
            validation: (N,) labels of the validation pictures; where there are fewer or more images than these, each is
                taken more often, or some are left out, evenly.

        Returns:
            (count,) int64; zeros without classes.
        """
        positions = torch.arange(count)
        if not classes:
            return torch.zeros_like(positions)
        if self.labels == "validation":
            return validation[positions * len(validation) // count]
        if self.labels == "uniform":
            return Draws(seed, positions).integers("evaluated class", classes)
        return positions % classes


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            "adm",
            "truncated",
            "uniform",
            "tensorflow1",
            "ADM's VIRTUAL_imagenet256_labeled.npz and the like",
            "ADM, DiT, SiT, REPA and others measured by ADM's suite (arXiv 2105.05233)",
        ),
        Convention(
            "torch_fidelity",
            "rounded",
            "balanced",
            "tensorflow1",
            "statistics of the training set, as JiT publishes them",
            "JiT and the PyTorch code of pMF (arXiv 2511.13720, 2601.22158)",
        ),
        Convention(
            "jax",
            "truncated",
            "balanced",
            "half_pixel",
            "the training set, cropped in the middle, by the same network",
            "the JAX code of MeanFlow, iMF and pMF (arXiv 2505.13447, 2601.22158)",
        ),
        Convention(
            "drifting",
            "truncated",
            "validation",
            "half_pixel",
            "the training set, as the JAX code of MeanFlow publishes it",
            "the JAX code of Drifting (arXiv 2602.04770)",
        ),
    )
}
