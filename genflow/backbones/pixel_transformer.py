"""The transformer of pMF and iMF: conditions as tokens of the sequence, one trunk, two heads."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.layers.embeddings import ScalarEmbedding, axial_rotation, sequence_rotation
from genflow.layers.patches import grid_side, unpatchify
from genflow.layers.tangents import Pair, PairLayer, affine_tangent, derivative, linear_tangent, norm_tangent
from genflow.layers.transformer import RMSNorm
from genflow.ranges import Depth, DepthOrNone, NotNegative, Positive
from genflow.registry import BACKBONES

#: Standard deviation of the layers' initial weights, times the root of their fan-in (docs/pmf.md, P11).
_LAYER_GAIN = 0.32
_POSITION_STD = 0.02


class Head(nn.Module):
    """The last layers of one output: RMSNorm and a linear map of the patch tokens, both after the layers.

    Args:
        layers: the layers.
        width: W.
        features: numbers per patch.
    """

    def __init__(self, layers: nn.ModuleList, width: int, features: int):
        super().__init__()
        self.layers = layers
        self.norm = RMSNorm(width, eps=1e-6)
        self.output = nn.Linear(width, features)


@BACKBONES.register_module()
class PixelTransformer(Backbone):
    """Patches, class, guidance scale, guidance interval and time in one sequence (pMF, iMF; docs/pmf.md, P10).

    Layers have RMSNorm, q/k norm, SwiGLU and zero gates. The head ``main`` is the continuation of the trunk;
    ``auxiliary`` branches off where ``main`` begins, and exists for training.

    Args:
        image_size: side of the square image.
        patch_size: side of a patch, P.
        width: W.
        depth: layers of trunk and main head together.
        heads: attention heads; a head's width must be a multiple of 4 (2 with rotary positions of the sequence).
        channels: of the image, C.
        num_classes: classes; 0 builds an unconditional backbone.
        head_depth: layers of the main head.
        auxiliary_depth: layers of the auxiliary head; None leaves it out.
        class_tokens, guidance_tokens, interval_tokens, time_tokens: tokens of each condition; interval tokens count
            for each end. A condition with 0 tokens is not looked at.
        clock: what the time tokens say: the duration t - r (pMF, iMF) or the time t (flow matching).
        bottleneck: channels between the two maps that embed a patch; None embeds by one map.
        rotary: rotary positions of the ``patches`` by row and column (pMF), or of the whole ``sequence`` (iMF).
        learned_positions: add a learned vector to every token.
        feedforward_multiple: the SwiGLU's inner width is rounded up to a multiple of this.

    Raises:
        ValueError: sizes that do not divide, or heads deeper than the network.
    """

    def __init__(
        self,
        image_size: Positive,
        patch_size: Positive,
        width: Positive,
        depth: Depth,
        heads: Positive,
        channels: Positive = 3,
        num_classes: NotNegative = 1000,
        head_depth: DepthOrNone = 8,
        auxiliary_depth: DepthOrNone | None = None,
        class_tokens: NotNegative = 8,
        guidance_tokens: NotNegative = 4,
        interval_tokens: NotNegative = 2,
        time_tokens: NotNegative = 4,
        clock: Literal["duration", "time"] = "duration",
        bottleneck: Positive | None = None,
        rotary: Literal["patches", "sequence"] = "patches",
        learned_positions: bool = True,
        feedforward_multiple: Positive = 1,
    ):
        super().__init__()
        if head_depth > depth:
            raise ValueError(f"head_depth {head_depth} is more than depth {depth}")
        side = grid_side(image_size, patch_size)
        features = channels * patch_size**2
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.clock = clock
        self.patch_embedding = _patch_embedding(channels, patch_size, bottleneck, width)
        # Every condition has learned tokens, to each of which its embedding is added.
        counts = {
            "labels": class_tokens if num_classes else 0,
            "guidance": guidance_tokens,
            "interval_start": interval_tokens,
            "interval_end": interval_tokens,
            clock: time_tokens,
        }
        counts = {name: count for name, count in counts.items() if count}
        # From pairs, which keep their order; that of a dictionary would be the alphabet's.
        self.tokens = nn.ParameterDict((name, torch.empty(1, count, width)) for name, count in counts.items())
        self.embeddings = nn.ModuleDict({name: ScalarEmbedding(width) for name in counts if name != "labels"})
        if "labels" in counts:
            # The last row stands for "no class".
            self.embeddings["labels"] = nn.Embedding(num_classes + 1, width)
        self.uses = tuple(dict.fromkeys(name.split("_")[0] for name in counts))
        self.prefix = sum(counts.values())
        length = self.prefix + side**2
        self.positions = nn.Parameter(torch.empty(1, length, width)) if learned_positions else None

        def layers(count: int) -> nn.ModuleList:
            options = {"qk_norm": True, "gated": True, "multiple": feedforward_multiple}
            return nn.ModuleList(PairLayer(width, heads, **options) for _ in range(count))

        self.trunk = layers(depth - head_depth)
        self.main = Head(layers(head_depth), width, features)
        self.auxiliary = None if auxiliary_depth is None else Head(layers(auxiliary_depth), width, features)
        self.register_buffer("angles", _angles(rotary, self.prefix, side, width // heads), persistent=False)
        self._initialize()

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that it has."""
        return ("main",) if self.auxiliary is None else ("main", "auxiliary")

    def repeated_layers(self) -> list[nn.Module]:
        heads = [head for head in (self.main, self.auxiliary) if head is not None]
        return [*self.trunk, *(layer for head in heads for layer in head.layers)]

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        return self._run(x, None, condition, heads)[0]

    def directional(
        self,
        x: Tensor,
        condition: Condition,
        direction: Tensor,
        heads: Sequence[str] = ("main",),
    ) -> tuple[dict[str, Tensor], Tensor]:
        return self._run(x, direction, condition, heads)

    def _run(
        self, x: Tensor, direction: Tensor | None, condition: Condition, heads: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        condition.require(*self.uses, user=type(self).__name__)
        self.check_heads(heads)
        sequence, tangent = self._through(self.trunk, *self._embed(x, direction, condition))
        outputs, moved = {}, None
        for name in heads:
            # Only the main head's tangent is asked for.
            outputs[name], d_output = self._finish(name, sequence, tangent if name == "main" else None)
            moved = moved if d_output is None else d_output
        return outputs, moved

    def _embed(self, x: Tensor, direction: Tensor | None, condition: Condition) -> Pair:
        """(B, C, H, W) and its (n, C, H, W) direction to the (B, L, W) sequence and its (n, L, W) tangent."""
        scalars = self._scalars(condition)
        parts = [tokens + self.embeddings[name](scalars[name]).unsqueeze(1) for name, tokens in self.tokens.items()]
        patches = self.patch_embedding(x).flatten(2).mT
        sequence = torch.cat([*(part.to(patches.dtype) for part in parts), patches], dim=1)
        if self.positions is not None:
            sequence = sequence + self.positions
        if direction is None:
            return sequence, None
        with torch.no_grad():
            moved = sequence.new_zeros(len(direction), *sequence.shape[1:])
            moved[:, self.prefix :] = affine_tangent(self.patch_embedding, direction).flatten(2).mT
            if self.clock in self.tokens:
                first = [*self.tokens].index(self.clock)
                start = sum(tokens.shape[1] for tokens in [*self.tokens.values()][:first])
                times = scalars[self.clock][: len(direction)]
                embedding = self.embeddings[self.clock]
                moving = derivative(embedding, (times,), (torch.ones_like(times),))
                moved[:, start : start + self.tokens[self.clock].shape[1]] = moving.unsqueeze(1)
        return sequence, moved

    def _scalars(self, condition: Condition) -> dict[str, Tensor]:
        """The (B,) number or label behind each kind of token."""
        scalars = {}
        if "labels" in self.tokens:
            scalars["labels"] = torch.where(condition.labels < 0, self.num_classes, condition.labels)
        if "guidance" in self.tokens:
            # 0 without guidance, below 1 however strong it is.
            scalars["guidance"] = 1 - 1 / condition.guidance
        if "interval_start" in self.tokens:
            scalars["interval_start"], scalars["interval_end"] = condition.interval.unbind(1)
        scalars[self.clock] = getattr(condition, self.clock)
        return scalars

    def _through(self, layers: nn.ModuleList, x: Tensor, tangent: Tensor | None) -> Pair:
        for layer in layers:
            x, tangent = layer(x, self.angles, tangent=tangent)
        return x, tangent

    def _finish(self, name: str, sequence: Tensor, tangent: Tensor | None) -> Pair:
        head: Head = getattr(self, name)
        sequence, tangent = self._through(head.layers, sequence, tangent)
        patches = sequence[:, self.prefix :]
        value = self._images(head.output(head.norm(patches)))
        if tangent is None:
            return value, None
        with torch.no_grad():
            moved = norm_tangent(head.norm, patches[: len(tangent)], tangent[:, self.prefix :])
            return value, self._images(linear_tangent(head.output, moved))

    def _images(self, patches: Tensor) -> Tensor:
        return unpatchify(patches, self.patch_size, self.image_shape[0])

    @torch.no_grad()
    def _initialize(self) -> None:
        """The initial values of docs/pmf.md, P11; gates, output maps and biases start at zero."""
        width = self.main.output.in_features
        for module in self.modules():
            if isinstance(module, PairLayer):
                for linear in module.modules():
                    if isinstance(linear, nn.Linear):
                        nn.init.normal_(linear.weight, std=_LAYER_GAIN * linear.in_features**-0.5)
            elif isinstance(module, nn.Conv2d):
                # As if it were linear: the kernel's area counts for what comes in alone.
                bound = math.sqrt(6 / (module.weight[0].numel() + module.out_channels))
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Head):
                nn.init.zeros_(module.output.weight)
                nn.init.zeros_(module.output.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=width**-0.5)
        for tokens in self.tokens.values():
            nn.init.normal_(tokens, std=width**-0.5)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=_POSITION_STD)


def _patch_embedding(channels: int, patch_size: int, bottleneck: int | None, width: int) -> nn.Module:
    first = nn.Conv2d(channels, bottleneck or width, patch_size, stride=patch_size)
    return first if bottleneck is None else nn.Sequential(first, nn.Conv2d(bottleneck, width, 1))


def _angles(rotary: str, prefix: int, side: int, head_width: int) -> Tensor:
    """(L, d/2) angles of the sequence; a prefix without positions is turned by 0."""
    if rotary == "sequence":
        return sequence_rotation(prefix + side**2, head_width)
    patches = axial_rotation(side, head_width)
    return torch.cat([patches.new_zeros(prefix, head_width // 2), patches])
