"""The diffusion transformer (DiT, arXiv 2212.09748) as MeanFlow uses it: conditions by adaptive layer norms."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.layers.embeddings import ScalarEmbedding, axial_sinusoids
from genflow.layers.patches import grid_side, unpatchify
from genflow.layers.transformer import Attention
from genflow.ranges import Depth, NotNegative, Positive
from genflow.registry import BACKBONES

_EMBEDDING_STD = 0.02
_EPS = 1e-6


class AdaptiveLayer(nn.Module):
    """A pre-norm layer whose norms and residual branches are shifted, scaled and gated by a condition.

    It starts as the identity.

    Args:
        width: W.
        heads: attention heads.
    """

    stacked: ClassVar = {"modulation.weight": 6}

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, T, W) sequence and (B, 1, W) condition to (B, T, W)."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        x = x + gate * self.attention(_modulated(x, shift, scale))
        inner = F.gelu(self.up(_modulated(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2 * self.down(inner)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale) + shift


@BACKBONES.register_module()
class DiT(Backbone):
    """Patches through layers with adaLN-zero; class, time and duration are summed (MeanFlow; docs/pmf.md, P10).

    Times are embedded as the numbers they are, not as 1,000 times them: derivatives with respect to them stay small.

    Args:
        image_size: side of the square image or latent.
        patch_size: side of a patch, P.
        width: W, a multiple of 4.
        depth: layers.
        heads: attention heads.
        channels: of the image, C.
        num_classes: classes; 0 builds an unconditional backbone.

    Raises:
        ValueError: sizes that do not divide.
    """

    stacked: ClassVar = {"modulation.weight": 2}

    def __init__(
        self,
        image_size: Positive,
        patch_size: Positive,
        width: Positive,
        depth: Depth,
        heads: Positive,
        channels: Positive = 4,
        num_classes: NotNegative = 1000,
    ):
        super().__init__()
        side = grid_side(image_size, patch_size)
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.uses = ("labels", "time", "duration") if num_classes else ("time", "duration")
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.time_embedding = ScalarEmbedding(width)
        self.duration_embedding = ScalarEmbedding(width)
        # The last row stands for "no class".
        self.labels = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.layers = nn.ModuleList(AdaptiveLayer(width, heads) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, channels * patch_size**2)
        self.register_buffer("positions", axial_sinusoids(side, width), persistent=False)
        self._initialize()

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        condition.require(*self.uses, user=type(self).__name__)
        self.check_heads(heads)
        embedding = self.time_embedding(condition.time) + self.duration_embedding(condition.duration)
        if self.labels is not None:
            labels = torch.where(condition.labels < 0, self.num_classes, condition.labels)
            embedding = embedding + self.labels(labels)
        embedding = embedding.unsqueeze(1)
        tokens = self.patch_embedding(x).flatten(2).mT + self.positions
        for layer in self.layers:
            tokens = layer(tokens, embedding)
        shift, scale = self.modulation(F.silu(embedding)).chunk(2, dim=-1)
        patches = self.output(_modulated(tokens, shift, scale))
        return {"main": unpatchify(patches, self.patch_size, self.image_shape[0])}

    def repeated_layers(self) -> nn.ModuleList:
        return self.layers

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in, fan_out = module.weight[0].numel(), len(module.weight)
                bound = math.sqrt(6 / (fan_in + fan_out))
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
        for embedding in (self.time_embedding, self.duration_embedding):
            nn.init.normal_(embedding[0].weight, std=_EMBEDDING_STD)
            nn.init.normal_(embedding[2].weight, std=_EMBEDDING_STD)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=_EMBEDDING_STD)
        for module in (*(layer.modulation for layer in self.layers), self.modulation, self.output):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
