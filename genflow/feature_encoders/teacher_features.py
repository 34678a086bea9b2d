"""Hidden states of a generator of many steps as features (teacher-feature drifting, arXiv 2605.07327)."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.feature_encoders.base import FeatureEncoder
from genflow.ranges import Length, NotNegative, Share
from genflow.registry import FEATURE_ENCODERS


@FEATURE_ENCODERS.register_module()
class TeacherFeatures(FeatureEncoder):
    """What layers of a velocity model make of a sample, without a class and without guidance.

    A network that has learned to denoise at all times is an encoder that a one-step generator of the same data needs
    no other for. Samples are given to it as they are, without noise; the paper was read in its abstract only, so where
    it takes states, and at which noise, may differ.

    Args:
        backbone: ``$name`` of a prerequisite, the teacher's network; one that is written out has random weights.
        layers: places among its repeated layers, from 0.
        time: that the network is told, 0 for data without noise.

    Raises:
        ValueError: the network has no such layer.
    """

    space = "samples"

    def __init__(
        self,
        backbone: Backbone,
        layers: Annotated[list[NotNegative], Length()],
        time: Share = 0.0,
    ):
        super().__init__()
        count = len(backbone.repeated_layers())
        for layer in layers:
            if layer >= count:
                raise ValueError(f"layers: found {layer}; {type(backbone).__name__} has the layers 0 to {count - 1}")
        self.backbone = backbone
        self.layers = tuple(dict.fromkeys(layers))
        self.time = time
        self.feature_names = tuple(f"layer{layer}" for layer in self.layers)

    @property
    def description(self) -> dict[str, str | int]:
        return {"layers": " ".join(map(str, self.layers)), "time": str(self.time)}

    def repeated_layers(self) -> Sequence[nn.Module]:
        return self.backbone.repeated_layers()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) samples to ``{"layer0": (B, tokens, width), ...}``, tokens as the layers see them.

        Raises:
            ValueError: a layer takes no part in the network's output, or gives no (B, tokens, width).
        """
        features: dict[str, Tensor] = {}
        repeated = self.backbone.repeated_layers()

        def keep(name: str):
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                features.setdefault(name, output[0] if isinstance(output, tuple) else output)

            return hook

        none = torch.full((len(images),), self.backbone.num_classes, dtype=torch.int64, device=images.device)
        time = torch.full((len(images),), self.time, device=images.device)
        condition = replace(Condition.unguided(none), duration=torch.zeros_like(time), time=time)
        with ExitStack() as stack:
            for layer, name in zip(self.layers, self.feature_names, strict=True):
                stack.callback(repeated[layer].register_forward_hook(keep(name)).remove)
            self.backbone(images, condition)
        for name in self.feature_names:
            found = features.get(name)
            if found is None or found.dim() != 3:
                what = "takes no part in its output" if found is None else f"gives {tuple(found.shape)}"
                raise ValueError(f"{name} of {type(self.backbone).__name__} {what}, expected (B, tokens, width)")
        return {name: features[name] for name in self.feature_names}
