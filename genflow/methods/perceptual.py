"""The perceptual slot of methods: distances between decoded images in the features of frozen encoders."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from genflow.data.crops import crop_resize, draw_boxes
from genflow.draws import Draws
from genflow.layers.precision import full_precision
from genflow.losses.base import Loss
from genflow.ranges import Length, Positive, Size


@dataclass
class PerceptualTerm:
    """One distance.

    Args:
        loss: distance between cropped images, such as an adaptively weighted feature distance.
        weight: its share in the total.
    """

    loss: Loss
    weight: Size = 1.0


@dataclass
class PerceptualSection:
    """The perceptual terms of a method (docs/biflow.md, B15; docs/pmf.md, P9).

    Args:
        terms: distances by name.
        crop: side to which one random box per sample, the same for both images, is resized; None compares whole
            images.
    """

    terms: Annotated[dict[str, PerceptualTerm], Length()]
    crop: Positive | None = 224


class PerceptualLoss(nn.Module):
    """The weighted terms of a :class:`PerceptualSection`; its networks are frozen."""

    def __init__(self, section: PerceptualSection):
        super().__init__()
        self.losses = nn.ModuleDict({name: term.loss for name, term in section.terms.items()})
        self.weights = {name: term.weight for name, term in section.terms.items()}
        self.crop = section.crop

    def forward(self, prediction: Tensor, target: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Two (B, C, H, W) images, nominally in [-1, 1], to ``{name: (B,) weighted distance}``.

        ``target`` carries no gradient.
        """
        target = target.detach()
        if self.crop is not None:
            with full_precision(prediction.device):
                boxes = draw_boxes(draws, *prediction.shape[2:])
                prediction, target = (crop_resize(image.float(), boxes, self.crop) for image in (prediction, target))
        return {name: self.weights[name] * loss(prediction, target) for name, loss in self.losses.items()}
