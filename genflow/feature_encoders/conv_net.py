"""A small convolutional classifier whose features serve small pictures."""

from typing import Annotated

from torch import Tensor, nn

from genflow.feature_encoders.base import FeatureEncoder
from genflow.feature_encoders.unit_features import unit_features
from genflow.ranges import Length, Positive
from genflow.registry import FEATURE_ENCODERS


@FEATURE_ENCODERS.register_module()
class ConvNet(FeatureEncoder):
    """Stages of two 3x3 convolutions, each with a norm and SiLU; every stage but the first halves the sides.

    Samples do not interact, and training and evaluation mode are the same. It has no weights of its own: train it
    as a classifier, and name that recipe as a prerequisite.

    Args:
        channels: of the images.
        widths: channels of the stages.
        num_classes: of the classifier.
    """

    trained = False

    def __init__(self, channels: Positive, widths: Annotated[list[Positive], Length()], num_classes: Positive):
        super().__init__()
        self.channels = channels
        self.num_classes = num_classes
        self.stages = nn.ModuleList()
        for index, width in enumerate(widths):
            before = widths[index - 1] if index else channels
            stride = 2 if index else 1
            self.stages.append(nn.Sequential(*_layer(before, width, stride), *_layer(width, width, 1)))
        self.classifier = nn.Linear(widths[-1], num_classes)
        self.feature_names = (*(f"stage_{index}" for index in range(len(widths))), "pooled")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, channels, H, W) images in [-1, 1] to features.

        Returns:
            ``{"stage_0": (B, H * W, widths[0]), ...}`` of unit length over channels, and ``"pooled"``, the average
            of the last stage, (B, 1, widths[-1]).
        """
        features, maps = {}, images
        for index, stage in enumerate(self.stages):
            maps = stage(maps)
            features[f"stage_{index}"] = unit_features(maps)
        return features | {"pooled": maps.mean(dim=(2, 3)).unsqueeze(1)}

    def classify(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) images in [-1, 1] to (B, num_classes) logits."""
        return self.encode_and_classify(images)[1]

    def encode_and_classify(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self(images)
        return features, self.classifier(features["pooled"].squeeze(1))


def _layer(channels: int, width: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 3, stride, padding=1), nn.GroupNorm(1, width), nn.SiLU()
