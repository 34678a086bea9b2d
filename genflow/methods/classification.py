"""Supervised training of a feature encoder, for perceptual losses on data that published encoders do not fit."""

import torch.nn.functional as F
from torch import Tensor

from genflow.draws import Draws
from genflow.feature_encoders.base import FeatureEncoder
from genflow.methods.base import Method
from genflow.ranges import ImageShape, Size
from genflow.registry import METHODS


@METHODS.register_module()
class Classification(Method):
    """Cross-entropy of an encoder's classifier on images with Gaussian noise.

    It trains no generator; another recipe names this one as a prerequisite and uses the encoder's features.

    Args:
        encoder: the classifier.
        image_shape: (C, H, W) of the images.
        noise_std: standard deviation of the noise, in the unit of the images, which lie in [-1, 1].

    Raises:
        ValueError: the encoder does not classify.
    """

    artifact = "encoder"
    progress = ("accuracy",)

    def __init__(self, encoder: FeatureEncoder, image_shape: ImageShape, noise_std: Size = 0.0):
        super().__init__()
        if not encoder.num_classes:
            raise ValueError(f"{type(encoder).__name__} does not classify")
        self.encoder = encoder
        self._image_shape = tuple(image_shape)
        self.noise_std = noise_std

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._image_shape

    @property
    def num_classes(self) -> int:
        return self.encoder.num_classes

    def forward(self, images: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        noisy = images + self.noise_std * draws.normal("data noise", self._image_shape)
        logits = self.encoder.classify(noisy).float()
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": loss, "cross_entropy": loss.detach(), "accuracy": accuracy}
