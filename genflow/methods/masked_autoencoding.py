"""Pre-training of the feature encoder that Drifting compares samples with (arXiv 2602.04770; docs/drifting.md, D12)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from genflow.codecs.base import Codec
from genflow.draws import Draws
from genflow.feature_encoders.base import MaskedEncoder
from genflow.methods.base import Method
from genflow.ranges import Interval, NotNegative, Positive, Share
from genflow.registry import METHODS


@dataclass(frozen=True)
class ClassificationSection:
    """When the classifier is trained along, and how much it counts.

    Args:
        weight: of the cross-entropy in the end; reconstruction keeps the rest.
        start: updates before.
        ramp: updates in which the weight grows, linearly.
    """

    weight: Share = 0.1
    start: NotNegative = 0
    ramp: Positive = 1000


@METHODS.register_module()
class MaskedAutoencoding(Method):
    """Fill in hidden patches of samples, and tell their classes from what is left.

    Per sample: weight * cross-entropy + (1 - weight) * squared error, summed over the channels of a patch and averaged
    over the hidden ones. Hidden patches are zero in the input.

    It trains no generator; another recipe names this one as a prerequisite and uses the encoder's features.

    Args:
        encoder: what is trained; its decoder is no part of the artifact.
        codec: normalises what the dataset stores.
        mask_cell: side of the squares of patches that are hidden together.
        mask_share: smallest and largest share of squares to hide; every sample draws its own, and every square is
            hidden with that probability.
        classification: None keeps the weight at 0; a classifier then gets gradients of zero.

    Raises:
        ValueError: encoder and codec do not fit, or the encoder's patches do not divide into squares, or it does not
            classify.
    """

    frozen = ("codec",)
    training_only = ("encoder.decoder",)
    artifact = "encoder"
    progress = ("reconstruction",)

    def __init__(
        self,
        encoder: MaskedEncoder,
        codec: Codec,
        mask_cell: Positive = 2,
        mask_share: Interval = (0.5, 0.5),
        classification: ClassificationSection | None = None,
    ):
        super().__init__()
        if codec.latent_shape != encoder.image_shape:
            raise ValueError(f"the codec's latents are {codec.latent_shape}, the encoder takes {encoder.image_shape}")
        height, width = encoder.patch_shape[1:]
        if height % mask_cell or width % mask_cell:
            raise ValueError(f"mask_cell {mask_cell} does not divide the encoder's {height}x{width} patches")
        if mask_share[0] > mask_share[1]:
            raise ValueError(f"mask_share has {mask_share[0]} before {mask_share[1]}, expected the smaller one first")
        if classification is not None and not encoder.num_classes:
            raise ValueError(f"{type(encoder).__name__} does not classify")
        self.encoder = encoder
        self.codec = codec
        self.mask_cell = mask_cell
        self.mask_share = mask_share
        self.classification = classification
        self.freeze()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.codec.latent_shape

    @property
    def num_classes(self) -> int:
        return self.encoder.num_classes

    def forward(self, images: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        patches = self.encoder.patches(self.codec.normalize(images))
        hidden = self.mask(draws)
        reconstruction, logits = self.encoder.reconstruct(patches * (1 - hidden))
        errors = (hidden * (reconstruction.float() - patches).square()).sum(dim=(1, 2, 3))
        loss = errors = errors / (hidden.sum(dim=(1, 2, 3)) + 1e-8)
        figures = {"reconstruction": errors.detach().mean(), "mask_share": hidden.mean()}
        if logits is not None:
            logits = logits.float()
            cross_entropy = F.cross_entropy(logits, labels, reduction="none")
            weight = self.classification_weight(draws)
            loss = weight * cross_entropy + (1 - weight) * errors
            figures["classification"] = cross_entropy.detach().mean()
            figures["accuracy"] = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": loss.mean(), **figures}

    def mask(self, draws: Draws) -> Tensor:
        """(B, 1, H', W'), 1 where the patches are hidden and 0 elsewhere."""
        least, most = self.mask_share
        share = least + (most - least) * draws.uniform("mask share", (1, 1, 1))
        height, width = (side // self.mask_cell for side in self.encoder.patch_shape[1:])
        cells = (draws.uniform("mask", (1, height, width)) < share).float()
        patches = "batch 1 rows columns -> batch 1 (rows row) (columns column)"
        return repeat(cells, patches, row=self.mask_cell, column=self.mask_cell)

    def classification_weight(self, draws: Draws) -> Tensor:
        """(B,) weights of the cross-entropy in the update that the draws belong to."""
        if self.classification is None:
            return torch.zeros(len(draws), device=draws.positions.device)
        updates = draws.positions // (draws.batch_size or len(draws))
        progress = (updates - self.classification.start) / self.classification.ramp
        return self.classification.weight * progress.clamp(0, 1)
