"""The contract of backbones."""

from collections.abc import Sequence

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

    ``groups`` groups and a last, finishing stage map hidden states (B, T, ``width``). Group ``i`` produces
    the hidden state that faces state ``i`` of the flow's trajectory; the groups run from ``groups - 1``
    down to 0. Tokens are row-major patches of side ``patch_size``.
    """

    groups: int
    width: int
    patch_size: int

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, T, W)."""
        raise NotImplementedError

    def group(self, index: int, hidden: Tensor, condition: Condition) -> Tensor:
        """Run group ``index`` on (B, T, W)."""
        raise NotImplementedError

    def finish(self, hidden: Tensor, condition: Condition) -> Tensor:
        """The finishing stage: (B, T, W) to (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        condition.require(*self.uses, user=type(self).__name__)
        if tuple(heads) != ("main",):
            raise ValueError(f"{type(self).__name__} has the head 'main' only, found {', '.join(heads)}")
        hidden = self.embed(x)
        for index in reversed(range(self.groups)):
            hidden = self.group(index, hidden, condition)
        return {"main": self.finish(hidden, condition)}
