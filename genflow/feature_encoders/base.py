"""The contract of feature encoders."""

from torch import Tensor, nn


class FeatureEncoder(nn.Module):
    """A map from images to named features."""

    kind = "feature encoder"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, C, H, W) images in [-1, 1] to ``{name: (B, tokens, channels)}``."""
        raise NotImplementedError
