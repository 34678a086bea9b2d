"""ConvNeXt V2 (arXiv 2301.00808) as a feature encoder, through timm."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from genflow.feature_encoders.base import FeatureEncoder
from genflow.feature_encoders.imagenet import Normalization, resize
from genflow.feature_encoders.pooling import pooled_features
from genflow.layers.precision import full_precision
from genflow.ranges import LocalPath, Positive
from genflow.registry import FEATURE_ENCODERS
from genflow.weights import load_weights, read_state

Stages = tuple[Positive, Positive, Positive, Positive]

# From the names of the authors' checkpoints, and of transformers', to timm's.
_RENAMED = (
    (r"^convnextv2\.", ""),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.grn\.", r"stages.\1.blocks.\2.mlp.grn."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.layernorm\.", r"stages.\1.blocks.\2.norm."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^layernorm\.", "head.norm."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
)


_POOLED = ("pooled",)
_STAGES = (
    *("convenxt_stage_0_mean", "convenxt_stage_0_std"),
    *(f"convenxt_stage_{index}{part}" for index in (1, 2, 3) for part in ("", "_mean", "_std")),
    *("global_mean", "global_std"),
)


@FEATURE_ENCODERS.register_module()
class ConvNeXtV2(FeatureEncoder):
    """Pooled features of the last stage, or the features of all stages, without the classifier.

    Images have at least 32 pixels a side; grey ones are repeated to three channels.

    ``features: pooled`` (docs/pmf.md, P9): ``pooled``, (B, 1, widths[3]), the normalised average of the last stage;
    images are taken as they are, in [-1, 1].

    ``features: stages`` (docs/drifting.md, D13): images normalised as ImageNet's, resized to 224 pixels a side. Each
    stage's output, less its mean over channels and divided by its standard deviation + 1e-3 at every position, gives
    ``convenxt_stage_1`` to ``_3``, (B, positions, channels), and ``convenxt_stage_0_mean``, ``_std`` to ``_3``,
    (B, 1, channels), over positions; ``global_mean`` is ``pooled``, ``global_std`` the last of the deviations. All in
    float32, also under autocast; the names are spelt as in the published code.

    Args:
        variant: one of the published sizes.
        weights: local file (``.pt`` or ``.safetensors``) with the names of timm, of the authors or of transformers; pMF
            and Drifting take the base model tuned on ImageNet-22k at 224. A classifier in it is left aside. None for
            the architecture without weights, which does not encode.
        depths, widths: blocks and channels of the four stages; None for those of ``variant``.
        features: see above.

    Raises:
        UserError: ``weights`` is not such a file.
    """

    def __init__(
        self,
        variant: Literal["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"] = "base",
        weights: LocalPath | None = None,
        depths: Stages | None = None,
        widths: Stages | None = None,
        features: Literal["pooled", "stages"] = "pooled",
    ):
        super().__init__()
        from timm import create_model

        sizes = {name: value for name, value in {"depths": depths, "dims": widths}.items() if value is not None}
        device = torch.get_default_device()
        with torch.device("meta"):
            network = create_model(f"convnextv2_{variant}", num_classes=0, conv_mlp=False, norm_eps=1e-6, **sizes)
            for stage in network.stages:
                for block in stage.blocks:
                    block.mlp.grn = GlobalResponseNorm(len(block.mlp.grn.weight))
        self.network = network.to_empty(device=device)
        self.normalize = Normalization()
        self.feature_names = _POOLED if features == "pooled" else _STAGES
        self.has_weights = weights is not None
        if weights is not None and device.type != "meta":
            load_weights(self.network, _in_timm_names(read_state(Path(weights))), Path(weights))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 1 or 3, H, W) images in [-1, 1] to features, see above.

        Raises:
            UserError: the encoder has no weights.
        """
        self.require_weights(images)
        images = images.expand(-1, 3, -1, -1)
        if self.feature_names == _POOLED:
            return {"pooled": self.network(images).unsqueeze(1)}
        with full_precision(images.device):
            return self._stage_features(images.float())

    def _stage_features(self, images: Tensor) -> dict[str, Tensor]:
        maps, features = self.network.stem(resize(self.normalize(images), 224)), {}
        for index, stage in enumerate(self.network.stages):
            maps = stage(maps)
            std, mean = torch.std_mean(maps, dim=1, correction=0, keepdim=True)
            unit = (maps - mean) / (std + 1e-3)
            features |= pooled_features(f"convenxt_stage_{index}", unit, windows=(), positions=index > 0)
        features["global_mean"] = self.network.head(maps).unsqueeze(1)
        features["global_std"] = features["convenxt_stage_3_std"]
        return features


class GlobalResponseNorm(nn.Module):
    """x + bias + weight x n, where n is the length of a channel over positions, relative to the mean of channels.

    The length is sqrt(sum x^2 + 1e-6), as in the code of pMF; timm's has no small number under the root.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, channels) to the same shape."""
        length = (x.square().sum(dim=(1, 2), keepdim=True) + 1e-6).sqrt()
        return x + self.bias + self.weight * x * (length / (length.mean(dim=-1, keepdim=True) + 1e-6))


def _in_timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under timm's names, without the classifier, 1x1 convolutions as linear maps."""
    renamed = {}
    for name, value in state.items():
        if name.startswith(("head.", "classifier.")) and not name.startswith("head.norm."):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        if ".grn." in name:
            value = value.flatten()  # noqa: PLW2901
        elif ".mlp.fc" in name and value.ndim == 4:
            value = value.flatten(1)  # noqa: PLW2901
        renamed[name] = value
    return renamed
