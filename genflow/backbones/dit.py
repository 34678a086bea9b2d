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
from genflow.layers.tangents import (
    Pair,
    affine_tangent,
    attention_tangent,
    checkpointed,
    derivative,
    gelu_tangent,
    layer_norm_tangent,
    linear_tangent,
    silu_tangent,
)
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

    def forward(
        self, x: Tensor, condition: Tensor, tangent: Tensor | None = None, moving: Tensor | None = None
    ) -> Pair:
        """A layer on a pair (docs/pmf.md, P8).

        Args:
            x: (B, T, W).
            condition: (B, 1, W).
            tangent, moving: the (n, T, W) and (n, 1, W) tangents of both; None where nothing moves.

        Returns:
            (B, T, W) and its (n, T, W) tangent.
        """
        rules = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        d_rules = _modulation_tangent(self.modulation, condition, moving, 6)

        normed, d_normed = _modulated(x, tangent, rules[:2], d_rules[:2])
        q, k, v = self.attention.split(self.attention.qkv(normed))
        attended = F.scaled_dot_product_attention(q, k, v)
        branch = self.attention.out(self.attention.merge(attended))
        d_branch = None
        if tangent is not None:
            n = len(tangent)
            dq, dk, dv = self.attention.split(linear_tangent(self.attention.qkv, d_normed))
            moved = attention_tangent(q[:n], k[:n], v[:n], dq, dk, dv, attended[:n])
            d_branch = linear_tangent(self.attention.out, self.attention.merge(moved))
        x, tangent = _gated(x, tangent, branch, d_branch, rules[2], d_rules[2])

        normed, d_normed = _modulated(x, tangent, rules[3:5], d_rules[3:5])
        inner = self.up(normed)
        branch = self.down(F.gelu(inner, approximate="tanh"))
        if tangent is not None:
            d_inner = gelu_tangent(inner[: len(tangent)], linear_tangent(self.up, d_normed), "tanh")
            d_branch = linear_tangent(self.down, d_inner)
        return _gated(x, tangent, branch, d_branch, rules[5], d_rules[5])

    checkpointed = staticmethod(checkpointed)


def _modulation_tangent(linear: nn.Linear, condition: Tensor, moving: Tensor | None, parts: int) -> Sequence:
    """The tangents of what a condition says; None where it does not move."""
    if moving is None:
        return [None] * parts
    return linear_tangent(linear, silu_tangent(condition[: len(moving)], moving)).chunk(parts, dim=-1)


def _modulated(x: Tensor, tangent: Tensor | None, rules: Sequence[Tensor], d_rules: Sequence[Tensor | None]) -> Pair:
    """A pair normalised, scaled and shifted."""
    (shift, scale), (d_shift, d_scale) = rules, d_rules
    normed = F.layer_norm(x, x.shape[-1:], eps=_EPS)
    value = normed * (1 + scale) + shift
    if tangent is None:
        return value, None
    with torch.no_grad():
        n = len(tangent)
        d_normed = layer_norm_tangent(normed[:n], x[:n], tangent, _EPS)
        return value, d_normed * (1 + scale[:n]) + normed[:n] * d_scale + d_shift


def _gated(
    x: Tensor,
    tangent: Tensor | None,
    branch: Tensor,
    d_branch: Tensor | None,
    gate: Tensor,
    d_gate: Tensor | None,
) -> Pair:
    """A pair plus a gated branch."""
    value = x + gate * branch
    if tangent is None:
        return value, None
    with torch.no_grad():
        n = len(tangent)
        return value, tangent + gate[:n] * d_branch + d_gate * branch[:n]


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
        self.check_heads(heads)
        return {"main": self._run(x, None, condition)[0]}

    def directional(
        self,
        x: Tensor,
        condition: Condition,
        direction: Tensor,
        heads: Sequence[str] = ("main",),
    ) -> tuple[dict[str, Tensor], Tensor]:
        self.check_heads(heads)
        value, moved = self._run(x, direction, condition)
        return {"main": value}, moved

    def _run(self, x: Tensor, direction: Tensor | None, condition: Condition) -> Pair:
        condition.require(*self.uses, user=type(self).__name__)
        embedding = self.time_embedding(condition.time) + self.duration_embedding(condition.duration)
        if self.labels is not None:
            labels = torch.where(condition.labels < 0, self.num_classes, condition.labels)
            embedding = embedding + self.labels(labels)
        embedding = embedding.unsqueeze(1)
        tokens, tangent, moving = self.patch_embedding(x).flatten(2).mT + self.positions, None, None
        if direction is not None:
            tangent, moving = self._tangents(direction, condition.rows(slice(len(direction))))
        for layer in self.layers:
            tokens, tangent = layer(tokens, embedding, tangent=tangent, moving=moving)
        rules = self.modulation(F.silu(embedding)).chunk(2, dim=-1)
        normed, d_normed = _modulated(
            tokens, tangent, rules, _modulation_tangent(self.modulation, embedding, moving, 2)
        )
        value = self._images(self.output(normed))
        return value, None if tangent is None else self._images(linear_tangent(self.output, d_normed))

    @torch.no_grad()
    def _tangents(self, direction: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The (n, T, W) and (n, 1, W) tangents of tokens and embedding."""
        clocks = ((self.time_embedding, condition.time), (self.duration_embedding, condition.duration))
        moving = sum(derivative(embed, (at,), (torch.ones_like(at),)) for embed, at in clocks)
        tangent = affine_tangent(self.patch_embedding, direction).flatten(2).mT
        # Under autocast, too, the sequence is in the precision of its positions.
        return tangent.to(self.positions.dtype), moving.unsqueeze(1)

    def _images(self, patches: Tensor) -> Tensor:
        return unpatchify(patches, self.patch_size, self.image_shape[0])

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
