"""ConvNeXt V2 (arXiv 2301.00808) as a feature encoder, through timm."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from genflow.feature_encoders.base import FeatureEncoder
from genflow.registry import FEATURE_ENCODERS
from genflow.slots import Positive
from genflow.weights import load_weights, read_state

Stages = tuple[Positive, Positive, Positive, Positive]

# From the names of the authors' checkpoints to timm's.
_RENAMED = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
)


@FEATURE_ENCODERS.register_module()
class ConvNeXtV2(FeatureEncoder):
    """The normalised average of the last stage, one token, without the classifier (pMF, spec 7).

    Images have at least 32 pixels a side and are taken as they are, in [-1, 1]; grey ones are repeated to three
    channels.

    Args:
        variant: one of the published sizes.
        weights: local file (``.pt`` or ``.safetensors``) with the names of timm or of the authors; pMF takes the
            base model tuned on ImageNet-22k at 224. A classifier in it is left aside. None for the architecture
            without weights, which does not encode.
        depths, widths: blocks and channels of the four stages; None for those of ``variant``.

    Raises:
        UserError: ``weights`` is not such a file.
    """

    feature_names = ("pooled",)

    def __init__(
        self,
        variant: Literal["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"] = "base",
        weights: str | None = None,
        depths: Stages | None = None,
        widths: Stages | None = None,
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
        self.has_weights = weights is not None
        if weights is not None and device.type != "meta":
            load_weights(self.network, _in_timm_names(read_state(Path(weights))), Path(weights))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 1 or 3, H, W) images in [-1, 1] to ``{"pooled": (B, 1, widths[3])}``.

        Raises:
            UserError: the encoder has no weights.
        """
        self.require_weights(images)
        return {"pooled": self.network(images.expand(-1, 3, -1, -1)).unsqueeze(1)}


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
        if name.startswith("head.") and not name.startswith("head.norm."):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        if ".grn." in name:
            value = value.flatten()  # noqa: PLW2901
        elif ".mlp.fc" in name and value.ndim == 4:
            value = value.flatten(1)  # noqa: PLW2901
        renamed[name] = value
    return renamed
