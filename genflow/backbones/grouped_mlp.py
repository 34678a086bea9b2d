"""The reverse model of BiFlow for vectors and points: residual networks instead of transformers."""

from torch import Tensor, nn

from genflow.backbones.base import GroupedBackbone
from genflow.condition import Condition
from genflow.layers.embeddings import ClassEmbedding, GuidanceEmbedding
from genflow.layers.patches import patchify, unpatchify
from genflow.ranges import Depth, DepthOrNone, NotNegative, Positive
from genflow.registry import BACKBONES


class ResidualLayer(nn.Module):
    """h + up(silu(down(h) + embedding)) that starts as the identity.

    Not normalised: a point of the plane would lose its distance from the origin.

    Args:
        width: W, of the state and of the hidden layer.
    """

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Linear(width, width)
        self.leave = nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, state: Tensor, embedding: Tensor | float) -> Tensor:
        """(B, 1, W) state and (B, 1, W) embedding to (B, 1, W)."""
        return state + self.leave(nn.functional.silu(self.enter(state) + embedding))


@BACKBONES.register_module()
class GroupedMLP(GroupedBackbone):
    """Groups of residual layers on the whole image as one token, then a denoising group.

    Class and guidance scale enter every layer of a group as added embeddings; the denoising group does not see
    the class. Without classes guidance has no meaning, and neither is looked at.

    Args:
        image_size: side of the square image; 1 for vectors.
        channels: its channels, the entries of a vector.
        width: W.
        groups: number of groups, the flow's number of blocks.
        layers: residual layers per group.
        denoise_layers: residual layers of the denoising group; 0 leaves it out.
        num_classes: classes; 0 builds an unconditional backbone.
    """

    def __init__(
        self,
        image_size: Positive,
        channels: Positive,
        width: Positive,
        groups: Depth,
        layers: Depth,
        denoise_layers: DepthOrNone = 2,
        num_classes: NotNegative = 0,
    ):
        super().__init__()
        features = channels * image_size**2
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.patch_size = image_size
        self.groups = groups
        self.state_features = width
        self.uses = ("labels", "guidance") if num_classes else ()
        self.input = nn.Linear(features, width)
        self.group_layers = nn.ModuleList(_layers(width, layers) for _ in range(groups))
        self.denoise_layers = _layers(width, denoise_layers)
        self.output = nn.Linear(width, features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if num_classes:
            self.classes = nn.ModuleList(ClassEmbedding(num_classes, width, std=1.0) for _ in range(groups))
            self.guidance_embedding = GuidanceEmbedding(width)

    def repeated_layers(self) -> list[nn.Module]:
        return [layer for group in (*self.group_layers, self.denoise_layers) for layer in group]

    def _guidance(self, condition: Condition) -> Tensor | float:
        """(B, 1, W) embedding of the scale, or 0 without classes."""
        if not self.num_classes:
            return 0.0
        return self.guidance_embedding(condition.guidance)

    def embed(self, x: Tensor) -> Tensor:
        return self.input(patchify(x, self.patch_size))

    def group(self, index: int, state: Tensor, condition: Condition) -> Tensor:
        embedding = self._guidance(condition)
        if self.num_classes:
            embedding = embedding + self.classes[index](condition.labels).unsqueeze(1)
        for layer in self.group_layers[index]:
            state = layer(state, embedding)
        return state

    def finish(self, state: Tensor, condition: Condition) -> Tensor:
        embedding = self._guidance(condition)
        for layer in self.denoise_layers:
            state = layer(state, embedding)
        return unpatchify(self.output(state), self.patch_size, self.image_shape[0])


def _layers(width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualLayer(width) for _ in range(count))
