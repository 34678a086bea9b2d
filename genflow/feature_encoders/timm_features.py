"""Pooled features of any model of timm: DINOv2, ConvNeXt, MAE, SigLIP, CLIP and others."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genflow.errors import UserError, nearest, reason
from genflow.feature_encoders.base import FeatureEncoder
from genflow.ranges import LocalPath, Positive
from genflow.registry import FEATURE_ENCODERS
from genflow.weights import load_weights, read_state


@FEATURE_ENCODERS.register_module()
class TimmFeatures(FeatureEncoder):
    """``pooled``, (B, 1, channels): what a model of timm gives its classifier.

    Images are resized to the model's size, bicubic and antialiased, and normalised as its pre-trained weights expect.

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
        options = {} if image_size is None else {"img_size": image_size}
        try:
            network = timm.create_model(model, pretrained=weights is None, num_classes=0, **options)
        except TypeError:  # convolutional networks take any size
            network = timm.create_model(model, pretrained=weights is None, num_classes=0)
        except Exception as error:  # timm's hub fails in many ways
            raise UserError(f"model {model!r} cannot be had: {reason(error)}") from error
        if weights is not None:
            state = read_state(Path(weights))
            own = network.state_dict()
            load_weights(network, {key: value for key, value in state.items() if key in own}, Path(weights))
        self.network = network.eval().requires_grad_(False)
        config = resolve_model_data_config(network)
        self.image_size = image_size or config["input_size"][-1]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

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
