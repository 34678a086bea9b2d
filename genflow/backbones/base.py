"""The contract of backbones."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from genflow.condition import Condition


class Backbone(nn.Module):
    """A network from an image-shaped tensor and a Condition to image-shaped tensors.

    A subclass sets ``image_shape`` (C, H, W), ``num_classes``, and ``uses``, the Condition fields it needs.
    """

    kind = "backbone"
    uses: tuple[str, ...] = ()
    image_shape: tuple[int, int, int]
    num_classes: int

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        """Map (B, C, H, W) to ``{head: (B, C, H, W)}``; only the heads asked for are computed.

        Raises:
            ValueError: a field of ``uses`` is missing from ``condition``, or a head is unknown.
        """
        raise NotImplementedError


class GroupedBackbone(Backbone):
    """A backbone made of groups that can be run one by one, as a reverse model of a flow needs it.

    ``groups`` groups and a last, finishing stage map states (B, T, ``state_features``). Group ``i`` produces
    the state that faces state ``i`` of the flow's trajectory; the groups run from ``groups - 1`` down to 0.
    Tokens are row-major patches of side ``patch_size``. States are hidden ones, or lie in the space of the
    data where ``states`` is ``data``; ``state_features`` is then C * patch_size^2.
    """

    groups: int
    state_features: int
    patch_size: int
    states: Literal["hidden", "data"] = "hidden"

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the first group's input (B, T, state_features)."""
        raise NotImplementedError

    def group(self, index: int, state: Tensor, condition: Condition) -> Tensor:
        """Run group ``index`` on (B, T, state_features)."""
        raise NotImplementedError

    def finish(self, state: Tensor, condition: Condition) -> Tensor:
        """The finishing stage: (B, T, state_features) to (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        condition.require(*self.uses, user=type(self).__name__)
        if tuple(heads) != ("main",):
            raise ValueError(f"{type(self).__name__} has the head 'main' only, found {', '.join(heads)}")
        state = self.embed(x)
        for index in reversed(range(self.groups)):
            state = self.group(index, state, condition.of_group(index))
        # The finishing stage continues group 0.
        return {"main": self.finish(state, condition.of_group(0))}
