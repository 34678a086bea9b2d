"""The bidirectional reverse transformer of BiFlow (arXiv 2512.10953; docs/biflow.md, B11)."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.backbones.base import GroupedBackbone
from genflow.condition import Condition
from genflow.layers.embeddings import ClassEmbedding, GuidanceEmbedding, axial_rotation
from genflow.layers.patches import grid_side, patchify, unpatchify
from genflow.layers.transformer import TransformerLayer, build_norm
from genflow.ranges import Depth, DepthOrNone, NotNegative, Positive
from genflow.registry import BACKBONES


class TokenGroup(nn.Module):
    """A few transformer layers with in-context tokens of their own, which are dropped again.

    Args:
        width, heads: of the layers.
        layers: number of layers.
        num_classes: classes of the group's own table; None for a group that does not see the class.
        class_tokens: in-context tokens for it.
        guidance_tokens: in-context tokens for the guidance scale; None for a group that does not see it.
    """

    stacked: ClassVar = {"class_tokens": 0, "guidance_tokens": 0}

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        num_classes: int | None,
        class_tokens: int,
        guidance_tokens: int | None,
    ):
        super().__init__()
        std = width**-0.5
        self.classes = None if num_classes is None else ClassEmbedding(num_classes, width, std)
        self.class_tokens = None if num_classes is None else nn.Parameter(std * torch.randn(class_tokens, width))
        self.guidance_tokens = (
            None if guidance_tokens is None else nn.Parameter(std * torch.randn(guidance_tokens, width))
        )
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, norm="rms", feedforward="swiglu", qk_norm=True, gated=True)
            for _ in range(layers)
        )

    def forward(self, hidden: Tensor, labels: Tensor | None, guidance: Tensor | None, angles: Tensor) -> Tensor:
        """(B, T, W) hidden, (B,) labels, (B, 1, W) guidance embedding, (T, d/2) angles to (B, T, W)."""
        prefix = []
        if self.classes is not None:
            prefix.append(self.class_tokens + self.classes(labels).unsqueeze(1))
        if self.guidance_tokens is not None:
            prefix.append(self.guidance_tokens + guidance)
        sequence = torch.cat([*(part.to(hidden.dtype) for part in prefix), hidden], dim=1)
        count = sequence.shape[1] - hidden.shape[1]
        angles = F.pad(angles, (0, 0, count, 0))
        for layer in self.layers:
            sequence = layer(sequence, angles=angles)
        return sequence[:, count:]


@BACKBONES.register_module()
class GroupedTransformer(GroupedBackbone):
    """Groups of bidirectional layers, one per block of the flow to be inverted, then a denoising group.

    Pre-norm RMSNorm layers with query/key norms, SwiGLU and zero-initialised gates, no biases; 2-D rotary
    positions on the patch tokens, none on in-context tokens. The denoising group sees the guidance scale
    but not the class. Without classes guidance has no meaning, and there are no in-context tokens.

    Args:
        image_size: side of the square image or latent.
        channels: its channels.
        patch_size: side of a patch.
        width: W.
        heads: attention heads.
        groups: number of groups, the flow's number of blocks.
        layers: layers per group.
        denoise_layers: layers of the denoising group; 0 leaves it out.
        num_classes: classes; 0 builds an unconditional backbone.
        class_tokens, guidance_tokens: in-context tokens per group, where there are classes.
        states: ``hidden`` keeps the width between groups; ``data`` projects every group's output to the
            features of a token, which the next group embeds again (the hidden distillation of BiFlow's
            ablation; docs/biflow.md, B13).

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        image_size: Positive,
        channels: Positive,
        patch_size: Positive,
        width: Positive,
        heads: Positive,
        groups: Depth,
        layers: Depth,
        denoise_layers: DepthOrNone = 2,
        num_classes: NotNegative = 1000,
        class_tokens: NotNegative = 8,
        guidance_tokens: NotNegative = 4,
        states: Literal["hidden", "data"] = "hidden",
    ):
        super().__init__()
        side = grid_side(image_size, patch_size)
        features = channels * patch_size**2
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.uses = ("labels", "guidance") if num_classes else ()
        self.patch_size = patch_size
        self.groups = groups
        self.states = states
        self.state_features = width if states == "hidden" else features
        if states == "hidden":
            self.input = nn.Linear(features, width)
        else:
            # entries[groups] is the finishing stage's.
            self.entries = nn.ModuleList(nn.Linear(features, width) for _ in range(groups + 1))
            self.exits = nn.ModuleList(nn.Linear(width, features) for _ in range(groups))
        self.guidance_embedding = GuidanceEmbedding(width) if num_classes else None
        tokens = guidance_tokens if num_classes else None
        self.group_layers = nn.ModuleList(
            TokenGroup(width, heads, layers, num_classes or None, class_tokens, tokens) for _ in range(groups)
        )
        self.denoise_layers = TokenGroup(width, heads, denoise_layers, None, 0, tokens) if denoise_layers else None
        self.output_norm = build_norm("rms", width)
        self.output = nn.Linear(width, features)
        self.register_buffer("angles", axial_rotation(side, width // heads), persistent=False)
        self._initialize()

    def repeated_layers(self) -> list[nn.Module]:
        groups = [*self.group_layers, *([] if self.denoise_layers is None else [self.denoise_layers])]
        return [layer for group in groups for layer in group.layers]

    def _initialize(self) -> None:
        """Variance-scaled linear maps with zero biases, and a zero output map."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.output.weight)

    def _guidance(self, condition: Condition) -> Tensor | None:
        """(B, 1, W) embedding of the scale; None without classes."""
        return None if self.guidance_embedding is None else self.guidance_embedding(condition.guidance)

    def embed(self, x: Tensor) -> Tensor:
        tokens = patchify(x, self.patch_size)
        return self.input(tokens) if self.states == "hidden" else tokens

    def group(self, index: int, state: Tensor, condition: Condition) -> Tensor:
        hidden = state if self.states == "hidden" else self.entries[index](state)
        hidden = self.group_layers[index](hidden, condition.labels, self._guidance(condition), self.angles)
        return hidden if self.states == "hidden" else self.exits[index](hidden)

    def finish(self, state: Tensor, condition: Condition) -> Tensor:
        hidden = state if self.states == "hidden" else self.entries[self.groups](state)
        if self.denoise_layers is not None:
            hidden = self.denoise_layers(hidden, condition.labels, self._guidance(condition), self.angles)
        tokens = self.output(self.output_norm(hidden))
        return unpatchify(tokens, self.patch_size, self.image_shape[0])
