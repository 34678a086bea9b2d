"""ResNet-50 (arXiv 1512.03385) with weights of a self-supervised training, through timm."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from genflow.feature_encoders.base import FeatureEncoder
from genflow.feature_encoders.imagenet import Normalization, resize
from genflow.feature_encoders.pooling import pooled_features, pooled_names
from genflow.ranges import LocalPath, Positive
from genflow.registry import FEATURE_ENCODERS
from genflow.weights import load_weights, read_state

_MOCO = "module.encoder_q."
_STAGES = (1, 2, 3, 4)


@FEATURE_ENCODERS.register_module()
class ResNet50(FeatureEncoder):
    """The outputs of the four stages, as the comparison of encoders in Drifting takes them (arXiv 2602.04770).

    Features: what :func:`~genflow.feature_encoders.pooling.pooled_features` makes of ``resnet_layer1`` to
    ``resnet_layer4``, of 256, 512, 1024 and 2048 channels, at 1/4 to 1/32 of ``image_size``. Images are normalised as
    ImageNet's; grey ones are repeated to three channels. Batch norms always use the statistics of the weights.

    Args:
        weights: local file (``.pth`` or ``.safetensors``) with torchvision's names, or with MoCo v2's
            ``module.encoder_q.`` before them. A classifier or projection head in it is left aside. None for the
            architecture without weights, which does not encode.
        image_size: side that images are resized to.
        windows, pooled: see :func:`~genflow.feature_encoders.pooling.pooled_features`.

    Raises:
        UserError: ``weights`` is not such a file.
    """

    def __init__(
        self,
        weights: LocalPath | None = None,
        image_size: Positive = 256,
        windows: tuple[Positive, ...] = (2, 4),
        pooled: bool = True,
    ):
        super().__init__()
        from timm import create_model

        device = torch.get_default_device()
        with torch.device("meta"):
            network = create_model("resnet50", features_only=True, out_indices=_STAGES)
        self.network = network.to_empty(device=device)
        self.normalize = Normalization()
        self.image_size = image_size
        self.windows = windows
        self.pooled = pooled
        self.has_weights = weights is not None
        if weights is not None and device.type != "meta":
            load_weights(self.network, self._in_timm_names(read_state(Path(weights))), Path(weights))
        self.feature_names = ()
        for index in _STAGES:
            side = math.ceil(image_size / 2 ** (index + 1))
            self.feature_names += pooled_names(f"resnet_layer{index}", side, side, windows, pooled=pooled)
        self.train()

    def train(self, mode: bool = True) -> "ResNet50":
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 1 or 3, H, W) images in [-1, 1] to features, see above.

        Raises:
            UserError: the encoder has no weights.
        """
        self.require_weights(images)
        stages = self.network(resize(self.normalize(images.expand(-1, 3, -1, -1)), self.image_size))
        features = {}
        for index, maps in zip(_STAGES, stages, strict=True):
            features |= pooled_features(f"resnet_layer{index}", maps, self.windows, pooled=self.pooled)
        return features

    def _in_timm_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without what precedes the names, without heads; older files do not count the batches of norms."""
        if any(name.startswith(_MOCO) for name in state):
            state = {name.removeprefix(_MOCO): value for name, value in state.items() if name.startswith(_MOCO)}
        own = self.network.state_dict()
        counts = {name: torch.zeros_like(value) for name, value in own.items() if name.endswith("num_batches_tracked")}
        return counts | {name: value for name, value in state.items() if not name.startswith("fc.")}
