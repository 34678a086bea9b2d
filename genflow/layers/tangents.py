"""Transformer layers that carry a tangent beside their value.

Forward-mode differentiation needs only the directional derivative of a layer, not its graph; fused attention has
no forward-mode derivative. So a layer maps a pair: the value as always, with its graph and fused kernels, and the
tangent by the rules below, without a graph. The borders of layers carry ordinary tensors, which distributed
wrappers, checkpointing and compilers understand (docs/pmf.md, P8; docs/architecture.md).

A tangent has shape (n, ...) and belongs to the first n rows of its value, n <= B: rows that do not move need none.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genflow.layers.embeddings import rotate
from genflow.layers.transformer import RMSNorm, TransformerLayer

#: A value (B, ...) and its tangent (n, ...); None where nothing moves.
Pair = tuple[Tensor, Tensor | None]


@torch.no_grad()
def derivative(function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    """The directional derivative of a function that has forward-mode rules, without a graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch scripts functions of its own at the first call
        return torch.func.jvp(function, at, along)[1]


@torch.no_grad()
def linear_tangent(linear: nn.Linear, tangent: Tensor) -> Tensor:
    """The derivative of a linear map: (n, ..., in) to (n, ..., out)."""
    return F.linear(tangent, linear.weight)


@torch.no_grad()
def affine_tangent(affine: nn.Module, tangent: Tensor) -> Tensor:
    """The derivative of a map that is linear but for its bias, whatever it is made of."""
    return affine(tangent) - affine(torch.zeros_like(tangent[:1]))


@torch.no_grad()
def norm_tangent(norm: RMSNorm, x: Tensor, tangent: Tensor) -> Tensor:
    """The derivative of an RMSNorm at (n, ..., W) ``x`` along ``tangent``, in the precision of the gain."""
    x, tangent = x.to(norm.weight.dtype), tangent.to(norm.weight.dtype)
    inverse = (x.square().mean(dim=-1, keepdim=True) + norm.eps).rsqrt()
    along = (x * tangent).mean(dim=-1, keepdim=True) * inverse.square()
    return (tangent - x * along) * inverse * norm.weight


@torch.no_grad()
def layer_norm_tangent(normed: Tensor, x: Tensor, tangent: Tensor, eps: float) -> Tensor:
    """The derivative of a layer norm without gain and bias, whose value is ``normed``, at (n, ..., W) ``x``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse = (x.to(wide).var(dim=-1, correction=0, keepdim=True) + eps).rsqrt()
    tangent, normed = tangent.to(wide), normed.to(wide)
    along = (normed * tangent).mean(dim=-1, keepdim=True)
    return (tangent - tangent.mean(dim=-1, keepdim=True) - normed * along) * inverse


@torch.no_grad()
def silu_tangent(x: Tensor, tangent: Tensor) -> Tensor:
    """The derivative of SiLU."""
    return torch.ops.aten.silu_backward(tangent.to(x.dtype), x)


@torch.no_grad()
def gelu_tangent(x: Tensor, tangent: Tensor, approximate: str = "none") -> Tensor:
    """The derivative of GELU."""
    return torch.ops.aten.gelu_backward(tangent.to(x.dtype), x, approximate=approximate)


@torch.no_grad()
def swiglu_tangent(wide: Tensor, tangent: Tensor) -> Tensor:
    """The derivative of SiLU(gate) * up at (n, ..., gate | up) ``wide``."""
    gate, up = wide.chunk(2, dim=-1)
    d_gate, d_up = tangent.chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return (sigmoid + silu * (1 - sigmoid)) * d_gate * up + silu * d_up


@torch.no_grad()
def attention_tangent(q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, out: Tensor) -> Tensor:
    """The derivative of softmax attention.

    Args:
        q, k, v: (n, H, L, d) queries, keys and values.
        dq, dk, dv: their tangents.
        out: (n, H, L, d) the attention's value.
    """
    scale, wide = q.shape[-1] ** -0.5, torch.promote_types(q.dtype, torch.float32)
    weights = torch.softmax((q @ k.mT).to(wide) * scale, dim=-1)
    moved = weights * ((torch.cat([dq, q], dim=-1) @ torch.cat([k, dk], dim=-1).mT).to(wide) * scale)
    both = torch.cat([moved, weights], dim=-1).to(v.dtype) @ torch.cat([v, dv], dim=-2)
    return both - moved.sum(dim=-1, keepdim=True) * out


def carry(layer: TransformerLayer, x: Tensor, tangent: Tensor | None, angles: Tensor) -> Pair:
    """A pre-norm layer of RMSNorm and SwiGLU with q/k norms, on a pair.

    Args:
        layer: gated or not.
        x: (B, L, W).
        tangent: (n, L, W), or None: the layer itself.
        angles: (L, d/2) rotary angles.
    """
    if tangent is None:
        return layer(x, angles=angles), None
    n = len(tangent)
    attention, feedforward = layer.attention, layer.feedforward
    normed = layer.attention_norm(x)
    d_normed = norm_tangent(layer.attention_norm, x[:n], tangent)
    queries, keys, values = attention.split(attention.qkv(normed))
    d_queries, d_keys, d_values = attention.split(linear_tangent(attention.qkv, d_normed))
    # In the order of the layer itself, which a checkpoint may compute again in the place of this.
    q, k = attention.query_norm(queries), attention.key_norm(keys)
    q, k = rotate(q, angles), rotate(k, angles)
    dq = _turned(attention.query_norm, queries, d_queries, angles)
    dk = _turned(attention.key_norm, keys, d_keys, angles)
    dtype = values.dtype
    q, k = q.to(dtype), k.to(dtype)
    attended = F.scaled_dot_product_attention(q, k, values)
    moved = attention_tangent(q[:n], k[:n], values[:n], dq.to(dtype), dk.to(dtype), d_values, attended[:n])
    branch = attention.out(attention.merge(attended))
    d_branch = linear_tangent(attention.out, attention.merge(moved).to(dtype))
    x, tangent = _add(x, tangent, branch, d_branch, layer.attention_gate)

    normed = layer.feedforward_norm(x)
    wide = feedforward.first(normed)
    d_wide = linear_tangent(feedforward.first, norm_tangent(layer.feedforward_norm, x[:n], tangent))
    branch = feedforward.down(feedforward.activate(wide))
    d_branch = linear_tangent(feedforward.down, swiglu_tangent(wide[:n], d_wide))
    return _add(x, tangent, branch, d_branch, layer.feedforward_gate)


def checkpointed(forward: Callable[..., Pair], compiled: bool) -> Callable[..., Pair]:
    """A layer of pairs without its activations, which backward computes again; the tangent is computed once.

    A compiled layer keeps other activations with a tangent than without, so it computes both again.

    Args:
        forward: of the layer; tangents are keywords, without which it gives the same value.
        compiled: whether it is.
    """

    def run(*inputs: Tensor, **tangents: Tensor | None) -> Pair:
        kept: list[Tensor | None] = []

        def value(*inputs: Tensor) -> Tensor:
            again = bool(kept) and not compiled
            out, moved = forward(*inputs, **({} if again else tangents))
            kept.append(moved)
            return out

        return checkpoint(value, *inputs, use_reentrant=False), kept[0]

    return run


class PairLayer(TransformerLayer):
    """A layer that hands on a tangent beside its value; arguments as those of a TransformerLayer."""

    def forward(self, x: Tensor, angles: Tensor, tangent: Tensor | None = None) -> Pair:
        """(B, L, W), (L, d/2) angles and (n, L, W), or None where nothing moves, to the pair after the layer."""
        if tangent is None:
            return super().forward(x, angles=angles), None
        return carry(self, x, tangent, angles)

    checkpointed = staticmethod(checkpointed)


@torch.no_grad()
def _turned(norm: RMSNorm, x: Tensor, tangent: Tensor, angles: Tensor) -> Tensor:
    """The tangent of normalised and rotated queries or keys; the rotation is linear."""
    return rotate(norm_tangent(norm, x[: len(tangent)], tangent), angles)


def _add(x: Tensor, tangent: Tensor, branch: Tensor, d_branch: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        tangent = tangent + (d_branch if gate is None else gate * d_branch)
    return x + (branch if gate is None else gate * branch), tangent
