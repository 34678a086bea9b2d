"""One autoregressive affine block of TARFlow and of its improved form.

Shapes: B batch, T tokens, D features of a token, W width, P prefix tokens. "Order" is the block's own
token order: raster, or raster reversed.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.layers.embeddings import ClassEmbedding, axial_rotation
from genflow.layers.patches import raster_order
from genflow.layers.precision import full_precision
from genflow.layers.transformer import Feedforward, KeyValueCache, Norm, TransformerLayer, build_norm


@dataclass(frozen=True)
class FlowStyle:
    """The options that a flow's blocks share; :class:`genflow.flow_teachers.tarflow.TARFlow` explains them."""

    head_width: int
    scaled: bool
    norm: Norm
    feedforward: Feedforward
    qk_norm: bool
    positions: Literal["learned", "rotary"]
    prefix_tokens: int
    bound: float | None


@dataclass(frozen=True)
class GuidedInverse:
    """How the exact inverse is guided (spec 1.7).

    Args:
        scale: (B, 1) guidance scale.
        guided: which affine parameters are extrapolated.
        anneal: multiply the scale by j / (T - 1) for the j-th token in block order.
        temperature: divides the attention logits of the null branch.
    """

    scale: Tensor
    guided: Literal["both", "scale", "shift"]
    anneal: bool
    temperature: float

    def combine(self, log_scale: Tensor, shift: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Guide (2B, D) affine parameters of labelled and null rows; returns (B, D) each."""
        scale = self.scale * (progress if self.anneal else 1.0)
        (log_scale, null_log_scale), (shift, null_shift) = log_scale.chunk(2), shift.chunk(2)
        if self.guided != "shift":
            log_scale = log_scale + scale * (log_scale - null_log_scale)
        if self.guided != "scale":
            shift = shift + scale * (shift - null_shift)
        return log_scale, shift


class FlowBlock(nn.Module):
    """v = (u - shift) * exp(-log_scale), both predicted causally from earlier tokens (spec 1.2, 2.3).

    Without prefix tokens the first token in block order passes unchanged and the class is added to every
    token; with them the class enters through the prefix, whose last output serves the first token.

    Args:
        side: patches per image side, T = side^2.
        features: D.
        width: W.
        layers: transformer layers.
        flipped: whether the block's order is reversed raster order.
        num_classes: rows of the class table; 0 builds none.
        style: shared options.
    """

    def __init__(
        self, side: int, features: int, width: int, layers: int, flipped: bool, num_classes: int, style: FlowStyle
    ):
        super().__init__()
        tokens = side * side
        if width % style.head_width:
            raise ValueError(f"width {width} is not a multiple of head_width {style.head_width}")
        self.flipped = flipped
        self.features = features
        self.style = style
        self.embed = nn.Linear(features, width)
        self.positions = nn.Parameter(0.01 * torch.randn(tokens, width)) if style.positions == "learned" else None
        self.classes = ClassEmbedding(num_classes, width) if num_classes else None
        prefix = style.prefix_tokens
        self.prefix = nn.Parameter(0.01 * torch.randn(prefix, width)) if prefix else None
        self.layers = nn.ModuleList(
            TransformerLayer(width, width // style.head_width, style.norm, style.feedforward, style.qk_norm)
            for _ in range(layers)
        )
        self.norm = build_norm("rms", width) if style.norm == "rms" else nn.Identity()
        self.out = nn.Linear(width, features * (2 if style.scaled else 1))
        nn.init.zeros_(self.out.weight)
        angles = None
        if style.positions == "rotary":
            angles = axial_rotation(side, style.head_width)[raster_order(tokens, flipped)]
            angles = F.pad(angles, (0, 0, prefix, 0))
        self.register_buffer("angles", angles, persistent=False)

    def _ordered(self, tokens: Tensor) -> Tensor:
        return tokens.flip(1) if self.flipped else tokens

    def _class_rows(self, labels: Tensor | None, batch: int) -> Tensor | float:
        """(B, 1, W) class embeddings, or 0 for an unconditional block."""
        if self.classes is None:
            return 0.0
        if labels is None:
            labels = torch.full((batch,), -1, device=self.out.weight.device)
        return self.classes(labels).unsqueeze(1)

    def _tokens(self, u: Tensor, class_rows: Tensor | float, start: int = 0) -> Tensor:
        """Embed tokens ``start ...`` in block order: (B, n, D) to (B, n, W)."""
        hidden = self.embed(u.to(self.embed.weight.dtype))
        if self.positions is not None:
            hidden = hidden + self._ordered(self.positions.unsqueeze(0))[:, start : start + u.shape[1]]
        return hidden if self.prefix is not None else hidden + class_rows

    def _network(self, hidden: Tensor, start: int, caches=None, temperature: Tensor | None = None) -> Tensor:
        """Run the layers on positions ``start ...`` of prefix and tokens; returns raw outputs."""
        angles = None if self.angles is None else self.angles[start : start + hidden.shape[1]]
        for index, layer in enumerate(self.layers):
            cache = None if caches is None else caches[index]
            hidden = layer(hidden, angles=angles, causal=True, cache=cache, temperature=temperature)
        return self.out(self.norm(hidden))

    def _affine(self, raw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Raw outputs to bounded (log_scale, shift), at least in float32 (spec 1.10)."""
        raw = raw.to(dtype)
        if self.style.bound is not None:
            raw = raw.clamp(-self.style.bound, self.style.bound)
        if not self.style.scaled:
            return torch.zeros_like(raw), raw
        return raw.chunk(2, dim=-1)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Data to noise: (B, T, D) raster tokens to tokens, (B,) log-determinant per dimension, saturation."""
        u = self._ordered(x)
        class_rows = self._class_rows(labels, len(x))
        # The last token parameterises nothing, so the network need not see it.
        hidden = self._tokens(u[:, :-1], class_rows)
        if self.prefix is not None:
            prefix = (self.prefix + class_rows).expand(len(x), -1, -1)
            raw = self._network(torch.cat([prefix, hidden], dim=1), start=0)[:, len(self.prefix) - 1 :]
        else:
            raw = self._network(hidden, start=0)
        with full_precision(x.device):
            log_scale, shift = self._affine(raw, u.dtype)
            if self.prefix is None:
                log_scale, shift = F.pad(log_scale, (0, 0, 1, 0)), F.pad(shift, (0, 0, 1, 0))
            v = (u - shift) * torch.exp(-log_scale)
            bound = self.style.bound
            saturation = raw.new_zeros(()) if bound is None else (raw.detach().abs() >= bound).float().mean()
            return self._ordered(v), -log_scale.mean(dim=(1, 2)), saturation

    @torch.no_grad()
    def inverse(self, y: Tensor, labels: Tensor | None, guidance: GuidedInverse | None = None) -> Tensor:
        """Noise to data, token by token with cached keys and values: (B, T, D) to (B, T, D), raster order."""
        v = self._ordered(y)
        batch, count, _ = v.shape
        copies, temperature = 1, None
        if guidance is not None:
            copies = 2
            labels = torch.full((batch,), -1, device=v.device) if labels is None else labels
            labels = torch.cat([labels, torch.full_like(labels, -1)])
            temperature = torch.ones(2 * batch, device=v.device, dtype=v.dtype)
            temperature[batch:] = guidance.temperature
        class_rows = self._class_rows(labels, copies * batch)
        prefix = 0 if self.prefix is None else len(self.prefix)
        caches = [KeyValueCache(prefix + count - 1) for _ in self.layers]
        u = v.clone()
        for token in range(count):
            if token > 0:
                seen = u[:, token - 1 : token].repeat(copies, 1, 1)
                hidden = self._tokens(seen, class_rows, start=token - 1)
                raw = self._network(hidden, prefix + token - 1, caches, temperature)
            elif prefix:
                hidden = (self.prefix + class_rows).expand(copies * batch, -1, -1)
                raw = self._network(hidden, 0, caches, temperature)
            else:
                continue
            with full_precision(v.device):
                log_scale, shift = self._affine(raw[:, -1], v.dtype)
                if guidance is not None:
                    log_scale, shift = guidance.combine(log_scale, shift, token / max(count - 1, 1))
                u[:, token] = v[:, token] * torch.exp(log_scale) + shift
        return self._ordered(u)
