"""The network of JiT (arXiv 2511.13720): patches of pixels through modulated layers, tokens of the class on the way."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.layers.embeddings import ScalarEmbedding, axial_rotation, axial_sinusoids
from genflow.layers.patches import grid_side, unpatchify
from genflow.layers.transformer import Attention, SwiGluFeedforward, build_norm
from genflow.ranges import Depth, NotNegative, Positive, Share
from genflow.registry import BACKBONES

_EMBEDDING_STD = 0.02


class JiTLayer(nn.Module):
    """A pre-norm layer whose norms and residual branches are shifted, scaled and gated by a condition.

    RMSNorm with gains, q/k norm, rotary positions, SwiGLU; all maps have biases. It starts as the identity.

    Args:
        width: W.
        heads: attention heads.
        dropout: share of the attention's output, and of the numbers inside the SwiGLU, that training drops.
    """

    stacked: ClassVar = {"modulation.weight": 6}

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention_norm = build_norm("rms", width)
        self.attention = Attention(width, heads, qk_norm=True)
        self.feedforward_norm = build_norm("rms", width)
        self.feedforward = SwiGluFeedforward(width, bias=True)
        self.modulation = nn.Linear(width, 6 * width)
        self.dropout = dropout

    def forward(self, x: Tensor, condition: Tensor, angles: Tensor) -> Tensor:
        """(B, L, W) sequence, (B, 1, W) condition through SiLU, and (L, d/2) rotary angles to (B, L, W)."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        branch = self.attention(_modulated(self.attention_norm(x), shift, scale), angles=angles)
        x = x + gate * self._dropped(branch)
        wide = self.feedforward.first(_modulated(self.feedforward_norm(x), shift_2, scale_2))
        return x + gate_2 * self.feedforward.down(self._dropped(self.feedforward.activate(wide)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


@BACKBONES.register_module()
class JiT(Backbone):
    """Patches through modulated layers; the sum of class and time modulates, tokens of the class join on the way.

    A patch is embedded through a narrow map; positions are fixed sines and cosines, and rotary by row and column on
    patches. From layer ``context_start`` on, ``context_tokens`` tokens stand in front of the patches: the class, each
    with a learned vector of its own. The paper counts time from noise to data, so the network embeds 1 - t. The output
    starts at zero.

    Args:
        image_size: side of the square image.
        patch_size: side of a patch, P; its numbers are ordered by row, column, channel.
        width: W, a multiple of 4.
        depth: layers.
        heads: attention heads; a head's width must be a multiple of 4.
        channels: of the image, C.
        num_classes: classes; 0 builds an unconditional backbone.
        bottleneck: channels between the two maps that embed a patch; the first has no bias.
        context_tokens: tokens of the class; 0 leaves them out.
        context_start: layers that see patches alone.
        clock: what is embedded: 1 minus the time t (flow matching), or 1 minus the duration t - r (average velocities).
            Both are 0 in a step from noise to data, of which a trained network therefore keeps its meaning.
        dropout: of the middle half of the layers, in training.
        learned_positions: train the positions, which start as the fixed ones.

    Raises:
        ValueError: sizes that do not divide, or context tokens that no layer would see.
    """

    stacked: ClassVar = {"modulation.weight": 2, "positions": 0, "context_positions": 0}

    def __init__(
        self,
        image_size: Positive,
        patch_size: Positive,
        width: Positive,
        depth: Depth,
        heads: Positive,
        channels: Positive = 3,
        num_classes: NotNegative = 1000,
        bottleneck: Positive = 128,
        context_tokens: NotNegative = 32,
        context_start: NotNegative = 4,
        clock: Literal["time", "duration"] = "time",
        dropout: Share = 0.0,
        learned_positions: bool = False,
    ):
        super().__init__()
        if context_tokens and context_start >= depth:
            raise ValueError(f"context_start {context_start} leaves no layer of {depth} that sees context tokens")
        side = grid_side(image_size, patch_size)
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.context_tokens = context_tokens
        self.context_start = context_start
        self.clock = clock
        self.uses = ("labels", clock) if num_classes else (clock,)
        self.patch_embedding = nn.Sequential(
            nn.Conv2d(channels, bottleneck, patch_size, stride=patch_size, bias=False), nn.Conv2d(bottleneck, width, 1)
        )
        self.time_embedding = ScalarEmbedding(width)
        # The last row stands for "no class".
        self.labels = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.context_positions = nn.Parameter(torch.empty(context_tokens, width)) if context_tokens else None
        middle = range(depth // 4, depth // 4 * 3)
        self.layers = nn.ModuleList(
            JiTLayer(width, heads, dropout if index in middle else 0.0) for index in range(depth)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = build_norm("rms", width)
        self.output = nn.Linear(width, channels * patch_size**2)
        positions = axial_sinusoids(side, width)
        if learned_positions:
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions, persistent=False)
        angles = axial_rotation(side, width // heads)
        # Context tokens have no place in the image: they are turned by 0.
        angles = torch.cat([angles.new_zeros(context_tokens, angles.shape[1]), angles])
        self.register_buffer("angles", angles, persistent=False)
        self._initialize()

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        condition.require(*self.uses, user=type(self).__name__)
        self.check_heads(heads)
        embedding = self.time_embedding(1 - getattr(condition, self.clock)).unsqueeze(1)
        label = None
        if self.labels is not None:
            labels = torch.where(condition.labels < 0, self.num_classes, condition.labels)
            label = self.labels(labels).unsqueeze(1)
            embedding = embedding + label
        embedding = F.silu(embedding)
        tokens = self.patch_embedding(x).flatten(2).mT + self.positions
        angles = self.angles[self.context_tokens :]
        for index, layer in enumerate(self.layers):
            if self.context_tokens and index == self.context_start:
                tokens, angles = torch.cat([self._context(label, tokens), tokens], dim=1), self.angles
            tokens = layer(tokens, embedding, angles)
        shift, scale = self.modulation(embedding).chunk(2, dim=-1)
        patches = self.output(_modulated(self.norm(tokens[:, self.context_tokens :]), shift, scale))
        return {"main": unpatchify(patches, self.patch_size, self.image_shape[0], channels_last=True)}

    def repeated_layers(self) -> nn.ModuleList:
        return self.layers

    def _context(self, label: Tensor | None, tokens: Tensor) -> Tensor:
        """The (B, context_tokens, W) tokens of (B, 1, W) classes, in the precision of the patches' ``tokens``."""
        context = self.context_positions.expand(tokens.shape[0], -1, -1)
        return (context if label is None else context + label).to(tokens.dtype)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Xavier uniform, patch maps as linear ones, but tables and the time's maps; modulations and output are 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)
        for linear in (self.time_embedding[0], self.time_embedding[2]):
            nn.init.normal_(linear.weight, std=_EMBEDDING_STD)
        if self.context_positions is not None:
            nn.init.normal_(self.context_positions, std=_EMBEDDING_STD)
        for linear in (*(layer.modulation for layer in self.layers), self.modulation, self.output):
            nn.init.zeros_(linear.weight)


def _modulated(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normed * (1 + scale) + shift
