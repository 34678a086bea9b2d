"""Pooled features of any model of timm: DINOv2, ConvNeXt, MAE, SigLIP, CLIP and others."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from genflow.errors import UserError, nearest, reason
from genflow.feature_encoders.base import FeatureEncoder, weights_are_wanted
from genflow.ranges import LocalPath, Positive
from genflow.registry import FEATURE_ENCODERS
from genflow.weights import read_state

#: Models whose positions are made for one size; the others take any.
_SIZED = ("vit_", "eva", "beit", "deit", "swin", "flexivit", "siglip")


@FEATURE_ENCODERS.register_module()
class TimmFeatures(FeatureEncoder):
    """``pooled``, (B, 1, channels): what a model of timm gives its classifier.

    Images are resized to the model's size, bicubic and antialiased, and normalised as its pre-trained weights expect.
    On the meta device it is built without weights, which :meth:`fetch` then looks for.

    Args:
        model: timm's name, such as ``vit_large_patch14_dinov2.lvd142m``.
        weights: local file (``.safetensors`` or ``.pt``) with timm's names; None takes timm's own pre-trained weights,
            which it fetches.
        image_size: side in pixels; None for the model's own.

    Raises:
        UserError: timm knows no such model, or the weights are missing or another model's.
    """

    feature_names = ("pooled",)

    def __init__(self, model: str, weights: LocalPath | None = None, image_size: Positive | None = None):
        super().__init__()
        import timm
        from timm.data import resolve_model_data_config

        name = model.split(".", maxsplit=1)[0]
        if not timm.is_model(name):
            raise UserError(f"model: found {model!r}, expected a model of timm{nearest(name, timm.list_models())}")
        size = {"img_size": image_size} if image_size and name.startswith(_SIZED) else {}
        self._wanted = partial(_network, model, weights, size)
        self.has_weights = weights is not None or weights_are_wanted()
        network = self._wanted(pretrained=self.has_weights)
        self.network = network.eval().requires_grad_(False)
        self.model = name
        config = resolve_model_data_config(network)
        self.image_size = image_size or config["input_size"][-1]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    @property
    def description(self) -> dict[str, str | int]:
        return {"model": self.model, "image_size": self.image_size}

    def repeated_layers(self) -> Sequence[nn.Module]:
        """The blocks of a transformer; nothing where timm has no such list."""
        return getattr(self.network, "blocks", ())

    def _fetch(self) -> None:
        self._wanted(pretrained=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3 or 1, H, W) images in [-1, 1] to ``{"pooled": (B, 1, channels)}``."""
        shown = images.expand(-1, 3, -1, -1)
        if shown.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            shown = interpolate(shown, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        pooled = self.network(((shown + 1) / 2 - self.mean) / self.std)
        if pooled.dim() != 2:
            found = f"found features of shape {tuple(pooled.shape)}"
            raise UserError(f"TimmFeatures: {found}, {math.prod(pooled.shape[1:])} numbers, expected (B, channels)")
        return {"pooled": pooled.unsqueeze(1)}


def _network(model: str, weights: str | None, size: dict[str, Any], pretrained: bool) -> nn.Module:
    import timm

    # timm itself fits positions to another size, and leaves the classifier aside.
    state = None if weights is None else read_state(Path(weights))
    given = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state}}
    try:
        network = timm.create_model(model, pretrained=pretrained, num_classes=0, **given, **size)
    except Exception as error:  # timm, its hub and its loaders fail in many ways
        raise UserError(f"model {model!r}: {weights or 'its weights'}: {reason(error)}") from error
    missing = [] if state is None else [key for key in network.state_dict() if key not in state]
    if missing:  # timm would leave them at random
        raise UserError(f"{weights}: has no '{missing[0]}', expected the weights of timm's {model}")
    return network
