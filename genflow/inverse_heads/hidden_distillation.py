"""Hidden distillation: the reverse model passes through the flow's states themselves (docs/biflow.md, B13)."""

from typing import Literal

from torch import Tensor

from genflow.backbones.base import GroupedBackbone
from genflow.inverse_heads.grouped import GroupedInverse
from genflow.layers.patches import unpatchify
from genflow.losses.base import Loss
from genflow.ranges import NotNegative
from genflow.registry import INVERSE_HEADS


@INVERSE_HEADS.register_module()
class HiddenDistillation(GroupedInverse):
    """Each group's output, projected to the data's features, matches the flow's state and is the next group's input.

    The paper's ablation of :class:`~genflow.inverse_heads.hidden_alignment.HiddenAlignment`: the projections
    belong to the reverse model, and all that a group hands on has passed through them.

    Args:
        backbone: the reverse model, with states ``data``.
        loss: distance between the groups' outputs and (normalised) trajectory states.
        trajectory_norm, norm_warmup: as in :class:`~genflow.inverse_heads.grouped.GroupedInverse`.

    Raises:
        ValueError: the backbone's states do not lie in the data's space.
    """

    def __init__(
        self,
        backbone: GroupedBackbone,
        loss: Loss,
        trajectory_norm: Literal["state", "sample", "none"] = "state",
        norm_warmup: NotNegative = 200,
    ):
        super().__init__(backbone, loss, trajectory_norm, norm_warmup)
        if backbone.states != "data":
            raise ValueError(f"hidden distillation needs a backbone with states 'data', found '{backbone.states}'")

    def project(self, states: list[Tensor]) -> list[Tensor]:
        """(B, T, D) outputs of the groups as (B, C, H, W)."""
        backbone = self.backbone
        return [unpatchify(state, backbone.patch_size, backbone.image_shape[0]) for state in states]
