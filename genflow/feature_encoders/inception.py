"""The Inception network of 2015-12-05, by which FIDs are measured, through torch-fidelity."""

import io
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from genflow.errors import UserError, missing_extra, reason
from genflow.feature_encoders.base import FeatureEncoder, weights_are_wanted
from genflow.ranges import LocalPath
from genflow.registry import FEATURE_ENCODERS

#: The layers in the order of the forward pass, by torch-fidelity's names.
_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")),
    "AvgPool",
)


@FEATURE_ENCODERS.register_module()
class Inception(FeatureEncoder):
    """``pooled``, (B, 1, 2048), and the 1,008 logits of the network of FID and Inception Score, without their bias.

    Images are rounded to 8 bits, resized to 299 pixels a side, and taken as (x - 128) / 128 (docs/drifting.md, D18).
    On the meta device it is built without weights, which :meth:`fetch` then looks for.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's release; None lets
            torch-fidelity fetch it into torch's cache.
        resize: ``tensorflow1``: bilinear as TensorFlow 1 has it, that of ADM, torch-fidelity and most published FIDs;
            ``half_pixel``: between the centres of pixels, that of the JAX evaluations of pMF and Drifting.
        rounded: clamped and rounded, as FIDs are measured; a generator that is trained on these features needs them
            without, for rounding has no derivative.

    Raises:
        UserError: torch-fidelity is not installed, or ``weights`` is not that file.
    """

    num_classes = 1008
    feature_names = ("pooled",)

    def __init__(
        self,
        weights: LocalPath | None = None,
        resize: Literal["tensorflow1", "half_pixel"] = "tensorflow1",
        rounded: bool = True,
    ):
        super().__init__()
        self.has_weights = weights is not None or weights_are_wanted()
        network = _network(weights, self.has_weights)
        self.rounded = rounded
        self.layers = nn.Sequential(*(getattr(network, name) for name in _LAYERS))
        self.classifier = network.fc
        self.resize = resize
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3 or 1, H, W) images in [-1, 1] to ``{"pooled": (B, 1, 2048)}``.

        Raises:
            ValueError: a derivative by images that are rounded is asked for.
        """
        if self.rounded and images.requires_grad:
            raise ValueError("Inception rounds images, which has no derivative; for training there is rounded: false")
        pixels = (images.clamp(-1, 1) + 1) * 127.5 if self.rounded else (images + 1) * 127.5
        pixels = (pixels.round() if self.rounded else pixels).expand(-1, 3, -1, -1)
        return {"pooled": self.layers((self._resized(pixels) - 128) / 128).flatten(1).unsqueeze(1)}

    def classify(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) images in [-1, 1] to (B, 1008) logits."""
        return self.encode_and_classify(images)[1]

    def encode_and_classify(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self(images)
        return features, self.logits(features["pooled"].squeeze(1))

    @property
    def description(self) -> dict[str, str | int]:
        return {"resize": self.resize} | ({} if self.rounded else {"rounded": "no"})

    def _fetch(self) -> None:
        _network(None, with_weights=True)

    def logits(self, pooled: Tensor) -> Tensor:
        """(B, 2048) features to (B, 1008) logits."""
        return pooled @ self.classifier.weight.T

    def _resized(self, pixels: Tensor) -> Tensor:
        size = (299, 299)
        if self.resize == "half_pixel":
            return interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        return interpolate_bilinear_2d_like_tensorflow1x(pixels.to(torch.float32), size=size, align_corners=False)


def _network(weights: str | None, with_weights: bool) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise missing_extra("torch-fidelity", "fid") from error
    if not with_weights:

        class WithoutWeights(FeatureExtractorInceptionV3):
            def load_state_dict(self, *_: Any, **__: Any) -> None:
                """There are none; torch-fidelity loads what it gets, here an empty file, in its constructor."""

        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        return WithoutWeights("inception", ["2048"], feature_extractor_weights_path=empty)
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"weights of Inception: there is no file '{weights}'")
    try:
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
    except Exception as error:  # whatever a download or a file of another sort raises
        raise UserError(f"weights of Inception: {weights or 'the download'}: {reason(error)}") from error
