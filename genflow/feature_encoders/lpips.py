"""The features behind LPIPS (arXiv 1801.03924) with VGG16, through torchvision."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from genflow.errors import missing_extra
from genflow.feature_encoders.base import FeatureEncoder
from genflow.feature_encoders.unit_features import unit_features
from genflow.ranges import LocalPath
from genflow.registry import FEATURE_ENCODERS
from genflow.weights import load_weights, read_state

# Layers of torchvision's VGG16, as numbered there, after which a feature is taken.
_TAPS = {"3": "relu1_2", "8": "relu2_2", "15": "relu3_3", "22": "relu4_3", "29": "relu5_3"}
# Means and standard deviations of images in [0, 1] (0.485 0.456 0.406, 0.229 0.224 0.225), as LPIPS rounds them
# for images in [-1, 1].
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)


@FEATURE_ENCODERS.register_module()
class LPIPS(FeatureEncoder):
    """Five levels of VGG16, of unit length over channels, times the roots of the weights that LPIPS learned.

    The sum over levels of the mean over positions of the squared difference over channels is LPIPS v0.1, see
    :class:`~genflow.losses.feature_distance.FeatureDistance`. Images have at least 16 pixels a side; grey ones are
    repeated to three channels.

    Args:
        weights: local file with the state dictionary of torchvision's VGG16 (``.pth`` or ``.safetensors``). None
            for the architecture without weights, which does not encode.

    Raises:
        UserError: the package lpips, which holds the learned weights, is not installed, or ``weights`` is not such
            a file.
    """

    feature_names = tuple(_TAPS.values())

    def __init__(self, weights: LocalPath | None = None):
        super().__init__()
        from torchvision.models import vgg16
        from torchvision.models.feature_extraction import create_feature_extractor

        device = torch.get_default_device()
        with torch.device("meta"):
            layers = create_feature_extractor(vgg16(init_weights=False).features, _TAPS)
        self.layers = layers.to_empty(device=device)
        self.has_weights = weights is not None
        if weights is not None and device.type != "meta":
            state = read_state(Path(weights))
            prefix = "features."
            features = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            load_weights(self.layers, features, Path(weights))
        self.register_buffer("mean", torch.tensor(_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(-1, 1, 1), persistent=False)
        for name, learned in zip(self.feature_names, _learned_weights(), strict=True):
            self.register_buffer(f"root_{name}", learned.to(device).sqrt(), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 1 or 3, H, W) images in [-1, 1] to ``{"relu1_2": (B, H * W, 64), ...}``, one entry per level.

        Raises:
            UserError: the encoder has no weights.
        """
        self.require_weights(images)
        taken = self.layers((images.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return {name: unit_features(maps) * getattr(self, f"root_{name}") for name, maps in taken.items()}


def _learned_weights() -> list[Tensor]:
    """Non-negative weights of channels, level by level, from the files of the package lpips.

    Raises:
        UserError: it is not installed.
    """
    package = find_spec("lpips")
    if package is None:
        raise missing_extra("lpips", "perceptual")
    state = read_state(Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth")
    return [state[f"lin{level}.model.1.weight"].flatten() for level in range(len(_TAPS))]
