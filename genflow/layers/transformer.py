"""The pre-norm transformer layer of flows and generators.

Shapes: B batch, L sequence, H heads, d head width, W = H*d width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
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


class KeyValueCache:
    """Keys and values of the positions seen so far, in one preallocated buffer per layer.

    Args:
        capacity: positions the buffer holds.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.buffer: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, n, d) keys and values; return those of all positions so far, (B, H, length, d)."""
        if self.buffer is None:
            batch, heads, _, width = keys.shape
            self.buffer = keys.new_empty(2, batch, heads, self.capacity, width)
        end = self.length + keys.shape[2]
        self.buffer[0, :, :, self.length : end] = keys
        self.buffer[1, :, :, self.length : end] = values
        self.length = end
        return self.buffer[0, :, :, :end], self.buffer[1, :, :, :end]


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

    def __init__(self, width: int, heads: int, bias: bool = True, qk_norm: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.query_norm = build_norm("rms", width // heads) if qk_norm else nn.Identity()
        self.key_norm = build_norm("rms", width // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """(B, L, W) to (B, L, W).

        Args:
            x: the sequence, or with a cache its next L positions.
            angles: (L, d/2) rotary angles of the positions of ``x``.
            causal: mask later positions (the diagonal is visible). With a non-empty cache L must be 1.
            cache: earlier positions; this call appends to it.
            temperature: (B,) divides the attention logits.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if temperature is not None:
            q = q / temperature.to(q.dtype).view(-1, 1, 1, 1)
        if cache is not None:
            k, v = cache.append(k.to(v.dtype), v)
        masked = bool(causal and x.shape[1] > 1)
        # Autocast leaves normalised or rotated queries in float32 beside half-precision values.
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=masked)
        return self.out(out.transpose(1, 2).flatten(-2))


class GeluFeedforward(nn.Module):
    """W -> 4W, exact GELU, 4W -> W, with biases."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class SwiGluFeedforward(nn.Module):
    """down(SiLU(gate(x)) * up(x)) without biases, inner width floor(8 W / 3)."""

    def __init__(self, width: int):
        super().__init__()
        inner = 8 * width // 3
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class TransformerLayer(nn.Module):
    """x + gate * Attention(norm(x)), then x + gate * Feedforward(norm(x)).

    Args:
        width, heads, qk_norm: as in :class:`Attention`.
        norm: ``layer`` (TARFlow) or ``rms``.
        feedforward: ``gelu`` (TARFlow, with biases) or ``swiglu`` (without biases, attention likewise).
        gated: scale both residual branches by learned vectors that start at zero.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        norm: Norm = "rms",
        feedforward: Feedforward = "swiglu",
        qk_norm: bool = False,
        gated: bool = False,
    ):
        super().__init__()
        self.attention_norm = build_norm(norm, width)
        self.attention = Attention(width, heads, bias=feedforward == "gelu", qk_norm=qk_norm)
        self.feedforward_norm = build_norm(norm, width)
        self.feedforward = GeluFeedforward(width) if feedforward == "gelu" else SwiGluFeedforward(width)
        self.attention_gate = nn.Parameter(torch.zeros(width)) if gated else None
        self.feedforward_gate = nn.Parameter(torch.zeros(width)) if gated else None

    def forward(self, x: Tensor, **attention) -> Tensor:
        """(B, L, W) to (B, L, W); keyword arguments as in :meth:`Attention.forward`."""
        branch = self.attention(self.attention_norm(x), **attention)
        x = x + (branch if self.attention_gate is None else self.attention_gate * branch)
        branch = self.feedforward(self.feedforward_norm(x))
        return x + (branch if self.feedforward_gate is None else self.feedforward_gate * branch)
