"""The pre-norm transformer layer of flows and generators.

Shapes: B batch, L sequence, H heads, d head width, W = H*d width.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genflow.layers.embeddings import rotate

Norm = Literal["layer", "rms"]
Feedforward = Literal["gelu", "swiglu"]


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm with a gain, computed in the precision of the gain also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def build_norm(norm: Norm, width: int) -> nn.Module:
    """LayerNorm (eps 1e-5, affine) or RMSNorm (eps 1e-6, gain)."""
    return nn.LayerNorm(width, eps=1e-5) if norm == "layer" else RMSNorm(width, eps=1e-6)


class Attention(nn.Module):
    """Multi-head self-attention with a joint query/key/value map (rows ordered q | k | v).

    Args:
        width: W.
        heads: H; must divide W.
        bias: whether the two maps have biases.
        qk_norm: RMS normalisation of queries and keys over the head width.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    #: Matrices that a parameter stacks, as optimizers of matrices want to know.
    stacked: ClassVar = {"qkv.weight": 3}

    def __init__(self, width: int, heads: int, bias: bool = True, qk_norm: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.query_norm = build_norm("rms", width // heads) if qk_norm else nn.Identity()
        self.key_norm = build_norm("rms", width // heads) if qk_norm else nn.Identity()

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, 3W) of the joint map to queries, keys and values, (B, H, L, d) each."""
        heads = "batch length (maps heads channels) -> maps batch heads length channels"
        return rearrange(joint, heads, maps=3, heads=self.heads).unbind(0)

    @staticmethod
    def merge(heads: Tensor) -> Tensor:
        """(B, H, L, d) to (B, L, W): the heads side by side."""
        return rearrange(heads, "batch heads length channels -> batch length (heads channels)")

    def forward(self, x: Tensor, angles: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, L, W) to (B, L, W).

        Args:
            x: the sequence.
            angles: (L, d/2) rotary angles of its positions.
            causal: mask later positions (the diagonal is visible).
        """
        q, k, v = self.split(self.qkv(x))
        q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        # Autocast leaves normalised or rotated queries in float32 beside half-precision values.
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=causal)
        return self.out(self.merge(out))


class GeluFeedforward(nn.Module):
    """Linear, exact GELU, linear, with biases.

    Args:
        width: W.
        ratio: the inner width is floor(ratio * W).
    """

    def __init__(self, width: int, ratio: float = 4.0):
        super().__init__()
        inner = int(ratio * width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    @property
    def first(self) -> nn.Linear:
        """The map before :meth:`activate`."""
        return self.up

    def activate(self, x: Tensor) -> Tensor:
        """What the first map gives to what the last one takes."""
        return F.gelu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activate(self.first(x)))


class SwiGluFeedforward(nn.Module):
    """down(SiLU(gate(x)) * up(x)).

    Args:
        width: W.
        multiple: the inner width is floor(2/3 floor(ratio * W)), rounded up to a multiple of this.
        ratio: inner width that a map without gate would have, over W.
        bias: whether the maps have biases.
    """

    stacked: ClassVar = {"gate_up.weight": 2}

    def __init__(self, width: int, multiple: int = 1, ratio: float = 4.0, bias: bool = False):
        super().__init__()
        inner = -(-(2 * int(ratio * width) // 3) // multiple) * multiple
        self.gate_up = nn.Linear(width, 2 * inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)

    @property
    def first(self) -> nn.Linear:
        """The map before :meth:`activate`."""
        return self.gate_up

    def activate(self, x: Tensor) -> Tensor:
        """What the first map gives to what the last one takes."""
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activate(self.first(x)))


class TransformerLayer(nn.Module):
    """x + gate * Attention(norm(x)), then x + gate * Feedforward(norm(x)).

    Args:
        width, heads, qk_norm: as in :class:`Attention`.
        norm: ``layer`` (TARFlow) or ``rms``.
        feedforward: ``gelu`` (TARFlow, with biases) or ``swiglu`` (without biases, attention likewise).
        gated: scale both residual branches by learned vectors that start at zero.
        multiple: of a ``swiglu``, as in :class:`SwiGluFeedforward`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        norm: Norm = "rms",
        feedforward: Feedforward = "swiglu",
        qk_norm: bool = False,
        gated: bool = False,
        multiple: int = 1,
    ):
        super().__init__()
        self.attention_norm = build_norm(norm, width)
        self.attention = Attention(width, heads, bias=feedforward == "gelu", qk_norm=qk_norm)
        self.feedforward_norm = build_norm(norm, width)
        self.feedforward = GeluFeedforward(width) if feedforward == "gelu" else SwiGluFeedforward(width, multiple)
        self.attention_gate = nn.Parameter(torch.zeros(width)) if gated else None
        self.feedforward_gate = nn.Parameter(torch.zeros(width)) if gated else None

    def forward(self, x: Tensor, **attention) -> Tensor:
        """(B, L, W) to (B, L, W); keyword arguments as in :meth:`Attention.forward`."""
        branch = self.attention(self.attention_norm(x), **attention)
        x = x + (branch if self.attention_gate is None else self.attention_gate * branch)
        branch = self.feedforward(self.feedforward_norm(x))
        return x + (branch if self.feedforward_gate is None else self.feedforward_gate * branch)


class CachedLayer:
    """A :class:`TransformerLayer` without gates that reads causal sequences step by step, for inference.

    Keys and values lie in buffers allocated here; a step reads exactly the positions so far, so nothing is
    masked, and nothing is left over from earlier sequences. What is the same in all steps is computed here.

    Args:
        layer: the layer; runs in the dtype of its weights.
        rows: sequences R.
        capacity: positions S that the buffers hold.
        angles: (S, d/2) rotary angles of all positions.
        temperature: (R,) divides the attention logits.
    """

    def __init__(
        self,
        layer: TransformerLayer,
        rows: int,
        capacity: int,
        angles: Tensor | None = None,
        temperature: Tensor | None = None,
    ):
        self.layer = layer
        self.rows = rows
        attention, weight = layer.attention, layer.attention.qkv.weight
        head_width = attention.out.in_features // attention.heads
        self.keys = weight.new_empty(rows, attention.heads, capacity, head_width)
        self.values = torch.empty_like(self.keys)
        self.temperature = None if temperature is None else temperature.to(weight.dtype).view(-1, 1, 1, 1)
        self.normalized = isinstance(attention.query_norm, RMSNorm)
        # Gains and rotation together: channels * self.straight + swapped pairs of channels * self.crossed.
        self.straight = self.crossed = None
        gains = weight.new_ones(2, 1, 1, 1, head_width)
        if self.normalized:
            self.straight = gains = torch.stack([attention.query_norm.weight, attention.key_norm.weight]).view_as(gains)
        if angles is not None:
            cosines, sines = angles.cos(), angles.sin()
            self.straight = (gains * torch.stack([cosines, cosines], dim=-1).flatten(-2)).to(weight.dtype)
            self.crossed = (_swapped(gains) * torch.stack([-sines, sines], dim=-1).flatten(-2)).to(weight.dtype)

    def __call__(self, x: Tensor, start: int) -> Tensor:
        """(R * n, W) of positions ``start ... start + n - 1`` to (R * n, W); n is 1 unless ``start`` is 0.

        With ``start`` above 0, ``x`` may have fewer rows: R is a multiple, and they serve all its parts.
        """
        layer, attention = self.layer, self.layer.attention
        qkv = product(normalized(x, layer.attention_norm), attention.qkv)
        if len(x) < self.rows:
            x, qkv = x.repeat(self.rows // len(x), 1), qkv.repeat(self.rows // len(x), 1)
        qkv = qkv.view(self.rows, -1, 3, attention.heads, self.keys.shape[-1]).permute(2, 0, 3, 1, 4)
        count = qkv.shape[3]
        queries, keys = self._positioned(qkv[:2], start)
        if self.temperature is not None:
            queries = queries / self.temperature
        end = start + count
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = qkv[2]
        attended = F.scaled_dot_product_attention(
            queries, self.keys[:, :, :end], self.values[:, :, :end], is_causal=count > 1
        )
        x = _plus(x, attended.transpose(1, 2).reshape(len(x), -1), attention.out)
        wide = product(normalized(x, layer.feedforward_norm), layer.feedforward.first)
        return _plus(x, layer.feedforward.activate(wide), layer.feedforward.down)

    def _positioned(self, qk: Tensor, start: int) -> Tensor:
        """Normalise and rotate (2, R, H, n, d) queries and keys."""
        if self.normalized:
            qk = _unit(qk, None, self.layer.attention.query_norm.eps)
        if self.crossed is None:
            return qk if self.straight is None else qk * self.straight
        here = slice(start, start + qk.shape[3])
        return torch.addcmul(qk * self.straight[..., here, :], _swapped(qk), self.crossed[..., here, :])


def _swapped(channels: Tensor) -> Tensor:
    """Exchange adjacent channels: (..., d) to (..., d)."""
    return channels.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def normalized(x: Tensor, norm: nn.Module) -> Tensor:
    """norm(x) for inference."""
    return _unit(x, norm.weight, norm.eps) if isinstance(norm, RMSNorm) else norm(x)


def _unit(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """RMS normalisation; a CPU has no fused kernel for it, and torch's own takes twice as many steps there."""
    if x.device.type != "cpu":
        return F.rms_norm(x, x.shape[-1:], gain, eps)
    dtype = torch.promote_types(x.dtype, torch.float32)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    unit = (x * size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()).to(x.dtype)
    return unit if gain is None else unit * gain


def product(x: Tensor, linear: nn.Linear) -> Tensor:
    """linear(x) of (R, in), for inference; on a CPU few rows are up to a quarter faster on the right."""
    if x.device.type != "cpu" or len(x) > 32:
        return linear(x)
    out = (linear.weight @ x.t()).t().contiguous()
    return out if linear.bias is None else out + linear.bias


def _plus(x: Tensor, inner: Tensor, linear: nn.Linear) -> Tensor:
    """x + linear(inner), on a GPU in one product."""
    if x.device.type == "cpu":
        return x + product(inner, linear)
    x = x if linear.bias is None else x + linear.bias
    return torch.addmm(x, inner, linear.weight.t())
