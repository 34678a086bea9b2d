"""One autoregressive affine block of TARFlow and of its improved form.

Shapes: B batch, T tokens, D features of a token, W width, P prefix tokens. "Order" is the block's own
token order: raster, or raster reversed.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.layers.embeddings import ClassEmbedding, axial_rotation
from genflow.layers.patches import raster_order
from genflow.layers.precision import full_precision
from genflow.layers.transformer import CachedLayer, Feedforward, Norm, TransformerLayer, build_norm, normalized, product


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
    clip: Literal["hard", "soft"]
    scale: Literal["exp", "softplus"]
    start_token: bool

    @property
    def leading(self) -> int:
        """Positions before the tokens; with any, the first token is transformed too."""
        return self.prefix_tokens or int(self.start_token)


@dataclass(frozen=True)
class GuidedInverse:
    """How the exact inverse is guided (docs/biflow.md, B8, B9).

    Args:
        scale: (B, 1) guidance scale w.
        guided: which affine parameters are guided.
        anneal: multiply the scale by j / (T - 1) for the j-th token in block order.
        temperature: divides the attention logits of the null branch.
        rule: ``linear`` extrapolates log-scale and shift away from the null branch's (TARFlow). ``gaussian``
            takes both branches as Gaussians per entry and their product p_labelled^(1 + w) / p_null^w, with
            the null branch at least as wide as the labelled one (STARFlow); for w >= 0 the scale never exceeds
            the labelled one.
    """

    scale: Tensor
    guided: Literal["both", "scale", "shift"]
    anneal: bool
    temperature: float
    rule: Literal["linear", "gaussian"] = "linear"

    def combine(self, log_scale: Tensor, shift: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Guide (2B, D) affine parameters of labelled and null rows; returns (B, D) each."""
        scale = self.scale * (progress if self.anneal else 1.0)
        (log_scale, null_log_scale), (shift, null_shift) = log_scale.chunk(2), shift.chunk(2)
        if self.rule == "linear":
            new_log_scale = log_scale + scale * (log_scale - null_log_scale)
            new_shift = shift + scale * (shift - null_shift)
        else:
            pull = scale * torch.exp(2 * (log_scale - null_log_scale).clamp(max=0))  # w s of B9
            precision = 1 + scale - pull  # relative to the labelled branch's
            new_log_scale = log_scale - 0.5 * precision.log()
            new_shift = ((1 + scale) * shift - pull * null_shift) / precision
        return log_scale if self.guided == "shift" else new_log_scale, shift if self.guided == "scale" else new_shift


class FlowBlock(nn.Module):
    """v = (u - shift) * exp(-log_scale), both predicted causally from earlier tokens (docs/biflow.md, B2).

    The class is added to every token, and the first token in block order passes unchanged, unless a start
    token precedes it. With prefix tokens instead, the class enters through the prefix, whose last output
    serves the first token.

    Args:
        side: patches per image side, T = side^2.
        features: D.
        width: W.
        layers: transformer layers.
        flipped: whether the block's order is reversed raster order.
        num_classes: rows of the class table; 0 builds none.
        style: shared options.
    """

    stacked: ClassVar = {"positions": 0, "prefix": 0}

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
        self.start = nn.Parameter(0.01 * torch.randn(features)) if style.start_token else None
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
            angles = F.pad(angles, (0, 0, style.leading, 0))
        self.register_buffer("angles", angles, persistent=False)

    def _apply(self, fn, recurse=True):
        exact = self.angles
        super()._apply(fn, recurse)
        if exact is not None and self.angles.dtype.itemsize < 4:  # half-precision weights keep exact angles
            self.angles = exact.to(self.angles.device)
        return self

    def _ordered(self, tokens: Tensor) -> Tensor:
        return tokens.flip(1) if self.flipped else tokens

    def _class_rows(self, labels: Tensor | None, batch: int) -> Tensor | float:
        """(B, 1, W) class embeddings, or 0 for an unconditional block."""
        if self.classes is None:
            return 0.0
        if labels is None:
            labels = torch.full((batch,), -1, device=self.out.weight.device)
        return self.classes(labels).unsqueeze(1)

    def _leading(self, class_rows: Tensor | float, batch: int) -> Tensor:
        """(B, P, W) what precedes the tokens: the prefix or the start token, with the class."""
        rows = self.embed(self.start) if self.prefix is None else self.prefix
        return (rows + class_rows).expand(batch, self.style.leading, -1)

    def _network(self, u: Tensor, class_rows: Tensor | float) -> Tensor:
        """(B, T, D) in block order to raw outputs for the tokens that are transformed, (B, T or T - 1, 2 D)."""
        # The last token parameterises nothing, so the network need not see it.
        hidden = self.embed(u[:, :-1].to(self.embed.weight.dtype))
        if self.positions is not None:
            hidden = hidden + self._ordered(self.positions.unsqueeze(0))[:, : hidden.shape[1]]
        if self.prefix is None:
            hidden = hidden + class_rows
        leading = self.style.leading
        if leading:
            hidden = torch.cat([self._leading(class_rows, u.shape[0]), hidden], dim=1)
        angles = None if self.angles is None else self.angles[: hidden.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, angles=angles, causal=True)
        return self.out(self.norm(hidden))[:, max(leading - 1, 0) :]

    def _affine(self, raw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Raw outputs to bounded (log_scale, shift), at least in float32 (docs/biflow.md, B2)."""
        raw, bound = raw.to(dtype), self.style.bound
        if bound is not None:
            raw = raw.clamp(-bound, bound) if self.style.clip == "hard" else bound * torch.tanh(raw / bound)
        if not self.style.scaled:
            return torch.zeros_like(raw), raw
        log_scale, shift = raw.chunk(2, dim=-1)
        if self.style.scale == "softplus":
            log_scale = F.softplus(log_scale + math.log(math.e - 1)).log()  # raw 0 gives 1
        return log_scale, shift

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Data to noise: (B, T, D) raster tokens to tokens, (B,) log-determinant per dimension, saturation."""
        u = self._ordered(x)
        raw = self._network(u, self._class_rows(labels, x.shape[0]))
        with full_precision(x.device):
            log_scale, shift = self._affine(raw, u.dtype)
            if not self.style.leading:
                log_scale, shift = F.pad(log_scale, (0, 0, 1, 0)), F.pad(shift, (0, 0, 1, 0))
            v = (u - shift) * torch.exp(-log_scale)
            bound = self.style.bound
            saturation = raw.new_zeros(()) if bound is None else (raw.detach().abs() >= bound).float().mean()
            return self._ordered(v), -log_scale.mean(dim=(1, 2)), saturation

    @torch.no_grad()
    def inverse(self, y: Tensor, labels: Tensor | None, guidance: GuidedInverse | None = None) -> Tensor:
        """Noise to data, token by token with cached keys and values: (B, T, D) to (B, T, D), raster order.

        The same operations in the same order whatever the values, without waiting for the device, so that a
        CUDA graph can hold them. Autocast is off: the network runs in the dtype of its weights.
        """
        batch, count, _ = y.shape
        rows, temperature = batch, None
        if guidance is not None:  # both branches in one batch
            rows = 2 * batch
            labels = torch.full((batch,), -1, device=y.device) if labels is None else labels
            labels = torch.cat([labels, torch.full_like(labels, -1)])
            if guidance.temperature != 1:
                temperature = torch.ones(rows, device=y.device, dtype=y.dtype)
                temperature[batch:] = guidance.temperature
        with full_precision(y.device):
            class_rows = self._class_rows(labels, rows)
            v = self._ordered(y)
            u = v.clone()
            leading, angles = self.style.leading, self.angles
            layers = [CachedLayer(layer, rows, leading + count - 1, angles, temperature) for layer in self.layers]
            offset = self.embed.bias.expand(count, -1)
            if self.positions is not None:
                offset = offset + self._ordered(self.positions.unsqueeze(0))[0]
            for token in range(0 if leading else 1, count):
                if token:
                    seen = u[:, token - 1].to(offset.dtype)
                    hidden = torch.addmm(offset[token - 1], seen, self.embed.weight.t())
                    if self.prefix is None and self.classes is not None:
                        hidden = (hidden + class_rows.view(-1, *hidden.shape)).flatten(0, 1)
                else:
                    hidden = self._leading(class_rows, rows).flatten(0, 1)
                start = leading + token - 1 if token else 0
                for layer in layers:
                    hidden = layer(hidden, start)
                raw = product(normalized(hidden.view(rows, -1, hidden.shape[1])[:, -1], self.norm), self.out)
                log_scale, shift = self._affine(raw, v.dtype)
                if guidance is not None:
                    log_scale, shift = guidance.combine(log_scale, shift, token / max(count - 1, 1))
                torch.addcmul(shift, v[:, token], torch.exp(log_scale), out=u[:, token])
        return self._ordered(u)
