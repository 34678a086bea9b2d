"""The generator of Drifting (arXiv 2602.04770): a LightningDiT (2501.01423) with random style codes instead of time."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.layers.embeddings import ScalarEmbedding, axial_sinusoids, rotate_halves, sequence_turns
from genflow.layers.patches import grid_side, patchify, unpatchify
from genflow.layers.precision import full_precision
from genflow.layers.transformer import Attention, Feedforward, GeluFeedforward, Norm, RMSNorm, SwiGluFeedforward
from genflow.ranges import Depth, DepthOrNone, NotNegative, Positive, Range
from genflow.registry import BACKBONES

_EMBEDDING_STD = 0.02
_EPS = 1e-6
#: Factor of the normalised embedding of the guidance scale.
_GUIDANCE_SHARE = 0.02
#: The inner width of a SwiGLU is rounded up to a multiple of this.
_MULTIPLE = 32

Precision = Literal["float32", "bfloat16"]


class SplitRotaryAttention(Attention):
    """Attention whose rotation pairs channel i of a head with channel i + d/2.

    Args:
        width, heads: as in :class:`~genflow.layers.transformer.Attention`.
        norm: of queries and keys; None leaves it out.
        precise: compute everything between the two linear maps in float32 also under autocast.
    """

    def __init__(self, width: int, heads: int, norm: Norm | None, precise: bool):
        super().__init__(width, heads)
        self.precise = precise
        if norm is not None:
            self.query_norm, self.key_norm = (_norm(norm, width // heads, affine=True) for _ in range(2))

    def forward(self, x: Tensor, turns: Tensor | None) -> Tensor:
        """(B, L, W) sequence and (2, L, d/2) cosines and sines of its positions to (B, L, W)."""
        q, k, v = self.split(self.qkv(x))
        dtype = v.dtype
        q, k = self.query_norm(q).to(dtype), self.key_norm(k).to(dtype)
        if self.precise:
            wide = torch.promote_types(dtype, torch.float32)
            q, k, v = q.to(wide), k.to(wide), v.to(wide)
        if turns is not None:
            q, k = rotate_halves(q, turns), rotate_halves(k, turns)
        with full_precision(x.device) if self.precise else nullcontext():
            out = F.scaled_dot_product_attention(q, k, v)
        return self.out(self.merge(out).to(dtype))


class ModulatedLayer(nn.Module):
    """A pre-norm layer whose norms and residual branches are shifted, scaled and gated by a condition.

    Args:
        width: W.
        heads: attention heads.
        condition_width: D.
        norm: of both branches.
        feedforward: ``swiglu`` or ``gelu``.
        feedforward_ratio: inner width of a ``gelu`` over W; a ``swiglu`` has two thirds of it.
        qk_norm: normalise queries and keys likewise, with a gain.
        precise: as in :class:`SplitRotaryAttention`.
    """

    stacked: ClassVar = {"modulation.weight": 6}

    def __init__(
        self,
        width: int,
        heads: int,
        condition_width: int,
        norm: Norm,
        feedforward: Feedforward,
        feedforward_ratio: float,
        qk_norm: bool,
        precise: bool,
    ):
        super().__init__()
        self.attention_norm = _norm(norm, width)
        self.attention = SplitRotaryAttention(width, heads, norm if qk_norm else None, precise)
        self.feedforward_norm = _norm(norm, width)
        if feedforward == "gelu":
            self.feedforward = GeluFeedforward(width, feedforward_ratio)
        else:
            self.feedforward = SwiGluFeedforward(width, _MULTIPLE, feedforward_ratio, bias=True)
        self.modulation = nn.Linear(condition_width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, turns: Tensor | None) -> Tensor:
        """(B, L, W) sequence, (B, 1, D) condition through SiLU, and (2, L, d/2) cosines and sines to (B, L, W)."""
        shift, scale, gate, shift_2, scale_2, gate_2 = _modulation(self.modulation, condition, x.dtype, 6)
        x = x + gate * self.attention(_modulated(self.attention_norm(x), x.dtype, shift, scale), turns)
        return x + gate_2 * self.feedforward(_modulated(self.feedforward_norm(x), x.dtype, shift_2, scale_2))


@BACKBONES.register_module()
class LightningDiT(Backbone):
    """Patches through modulated layers; class, random style codes and scale are one vector (docs/drifting.md, D1, D2).

    The vector modulates the layers, and is put in front of the patches as tokens. The guidance scale is embedded as
    the number it is; one for the whole batch, of shape (), will do. There is no "no class": a label, or a style code,
    that has no row in its table is an ``IndexError`` (on a GPU a device-side assertion). The output starts at zero.

    Under bfloat16 autocast the residual stream is bfloat16, norms and modulations float32 (docs/drifting.md, D2).

    Args:
        image_size: side of the square image or latent.
        patch_size: side of a patch, P; its numbers are ordered by row, column, channel.
        width: W, a multiple of 4.
        depth: layers.
        heads: attention heads; their width must be even where positions are rotary.
        channels: of the image, C.
        num_classes: classes; 0 builds an unconditional backbone.
        condition_width: numbers of the vector; None: W.
        context_tokens: tokens in front of the patches.
        style_codebooks, style_entries: tables of style vectors, and vectors in each; 0 codebooks leave style out.
        norm: ``rms`` with gains, or ``layer`` without (those of queries and keys have them).
        feedforward: ``swiglu``, or ``gelu`` (exact).
        feedforward_ratio: inner width of a ``gelu`` over W; a ``swiglu`` has two thirds of it, rounded up to 32s.
        rotary: rotate queries and keys by their positions in the whole sequence.
        qk_norm: normalise queries and keys.
        attention_precision: ``float32`` computes attention in it also under autocast. ``bfloat16`` leaves attention to
            autocast and always rounds rotary angles to bfloat16, which makes them other angles (docs/drifting.md, D3).

    Raises:
        ValueError: sizes that do not divide.
    """

    stacked: ClassVar = {"modulation.weight": 2, "positions": 0, "context_positions": 0}

    def __init__(
        self,
        image_size: Positive,
        patch_size: Positive,
        width: Positive,
        depth: Depth,
        heads: Positive,
        channels: Positive = 4,
        num_classes: NotNegative = 1000,
        condition_width: Positive | None = None,
        context_tokens: NotNegative = 16,
        style_codebooks: DepthOrNone = 32,
        style_entries: Positive = 64,
        norm: Norm = "rms",
        feedforward: Feedforward = "swiglu",
        feedforward_ratio: Annotated[float, Range(above=0, below=1000)] = 4.0,
        rotary: bool = True,
        qk_norm: bool = True,
        attention_precision: Precision = "float32",
    ):
        super().__init__()
        side = grid_side(image_size, patch_size)
        features = channels * patch_size**2
        condition_width = condition_width or width
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.style_codes = (style_codebooks, style_entries)
        self.context_tokens = context_tokens
        has = {"labels": num_classes, "guidance": True, "style": style_codebooks}
        self.uses = tuple(name for name, present in has.items() if present)

        self.labels = nn.Embedding(num_classes, condition_width) if num_classes else None
        self.style = nn.ModuleList(nn.Embedding(style_entries, condition_width) for _ in range(style_codebooks))
        self.guidance = ScalarEmbedding(condition_width)
        self.guidance_norm = RMSNorm(condition_width, eps=_EPS)
        self.patch_embedding = nn.Linear(features, width)
        self.positions = nn.Parameter(axial_sinusoids(side, width))
        if context_tokens:
            self.context_embedding = nn.Linear(condition_width, width)
            self.context_positions = nn.Parameter(torch.empty(context_tokens, width))
        precise = attention_precision == "float32"
        shape = (width, heads, condition_width, norm, feedforward, feedforward_ratio, qk_norm, precise)
        self.layers = nn.ModuleList(ModulatedLayer(*shape) for _ in range(depth))
        self.modulation = nn.Linear(condition_width, 2 * width)
        self.norm = _norm(norm, width)
        self.output = nn.Linear(width, features)
        turns = None
        if rotary:
            turns = sequence_turns(context_tokens + side**2, width // heads, getattr(torch, attention_precision))
        self.register_buffer("turns", turns, persistent=False)
        self._initialize()

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        condition.require(*self.uses, user=type(self).__name__)
        self.check_heads(heads)
        embedding = self.embed_condition(condition, x.shape[0]).unsqueeze(1)
        tokens = self._embed(x, embedding)
        # Modulations are computed in the precision of their weights.
        embedding = F.silu(embedding.to(self.modulation.weight.dtype))
        for layer in self.layers:
            tokens = layer(tokens, embedding, self.turns)
        shift, scale = _modulation(self.modulation, embedding, tokens.dtype, 2)
        patches = tokens[:, self.context_tokens :]
        patches = self.output(_modulated(self.norm(patches), patches.dtype, shift, scale))
        return {"main": unpatchify(patches, self.patch_size, self.image_shape[0], channels_last=True)}

    def repeated_layers(self) -> nn.ModuleList:
        return self.layers

    def embed_condition(self, condition: Condition, batch: int) -> Tensor:
        """The (B, D) sum of the vectors of class, style codes and guidance scale (docs/drifting.md, D1).

        Raises:
            ValueError: not as many style codes as codebooks.
            IndexError: a label or code without a row in its table.
        """
        guidance = self.guidance(condition.guidance.expand(batch))
        vectors = [] if self.labels is None else [self.labels(condition.labels)]
        if self.style:
            vectors += [table(codes) for table, codes in zip(self.style, condition.style.unbind(1), strict=True)]
        vectors.append(_GUIDANCE_SHARE * self.guidance_norm(guidance).to(guidance.dtype))
        total, *others = (vector.to(guidance.dtype) for vector in vectors)
        for vector in others:
            total = total + vector
        return total

    def _embed(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) images and (B, 1, D) conditions to the (B, L, W) sequence."""
        patches = self.patch_embedding(patchify(x, self.patch_size, channels_last=True))
        sequence = patches + self.positions
        if self.context_tokens:
            sequence = torch.cat([self.context_embedding(embedding) + self.context_positions, sequence], dim=1)
        return sequence.to(patches.dtype)

    @torch.no_grad()
    def _initialize(self) -> None:
        """The initial values of docs/drifting.md, D4; modulations, the output map and biases start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)
        for layer in self.layers:
            if isinstance(layer.feedforward, SwiGluFeedforward):
                for matrix in layer.feedforward.gate_up.weight.chunk(2):  # two maps, each with its own fan-out
                    nn.init.xavier_uniform_(matrix)
        for linear in (self.guidance[0], self.guidance[2]):
            nn.init.normal_(linear.weight, std=_EMBEDDING_STD)
        if self.context_tokens:
            nn.init.normal_(self.context_positions, std=_EMBEDDING_STD)
        for linear in (*(layer.modulation for layer in self.layers), self.modulation, self.output):
            nn.init.zeros_(linear.weight)


def _norm(norm: Norm, width: int, affine: bool = False) -> nn.Module:
    """RMSNorm with a gain, or LayerNorm, with gain and offset where ``affine``."""
    return RMSNorm(width, eps=_EPS) if norm == "rms" else nn.LayerNorm(width, eps=_EPS, elementwise_affine=affine)


def _modulation(linear: nn.Linear, condition: Tensor, dtype: torch.dtype, count: int) -> tuple[Tensor, ...]:
    """``count`` (B, 1, W) vectors of a (B, 1, D) condition, computed in its own precision."""
    with full_precision(condition.device):
        return linear(condition).to(dtype).chunk(count, dim=-1)


def _modulated(normed: Tensor, dtype: torch.dtype, shift: Tensor, scale: Tensor) -> Tensor:
    return normed.to(dtype) * (1 + scale) + shift
