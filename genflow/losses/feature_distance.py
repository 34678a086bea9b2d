"""Distances between features of images."""

from typing import Annotated

import torch
from torch import Tensor

from genflow.errors import nearest
from genflow.feature_encoders.base import FeatureEncoder
from genflow.losses.base import Loss
from genflow.ranges import Length
from genflow.registry import LOSSES


@LOSSES.register_module()
class FeatureDistance(Loss):
    """Squared differences of features, summed over channels, averaged over tokens, summed over features.

    With the features of LPIPS it is LPIPS (arXiv 1801.03924), with a pooled feature the squared Euclidean distance
    (docs/pmf.md, P9).

    Args:
        encoder: computes the features; frozen and always in evaluation mode.
        features: names of those to compare; None for all.

    Raises:
        ValueError: the encoder has no such feature.
    """

    def __init__(self, encoder: FeatureEncoder, features: Annotated[list[str], Length()] | None = None):
        super().__init__()
        self.features = list(encoder.feature_names) if features is None else features
        for name in self.features:
            if name not in encoder.feature_names:
                known = ", ".join(encoder.feature_names)
                hint = nearest(name, encoder.feature_names)
                raise ValueError(f"{type(encoder).__name__} has no feature '{name}'{hint} (known: {known})")
        self.encoder = encoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "FeatureDistance":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, C, H, W) images in [-1, 1] to (B,) distances, at least in float32; no gradient in ``target``."""
        with torch.no_grad():
            targets = self.encoder(target)
        predictions = self.encoder(prediction)
        return torch.stack([self._distance(predictions[name], targets[name]) for name in self.features]).sum(dim=0)

    @staticmethod
    def _distance(prediction: Tensor, target: Tensor) -> Tensor:
        wide = torch.promote_types(prediction.dtype, torch.float32)
        return (prediction.to(wide) - target.to(wide)).square().sum(dim=2).mean(dim=1)
