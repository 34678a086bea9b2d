"""Hidden alignment: BiFlow's supervision of the reverse model (docs/biflow.md, B13)."""

from typing import Literal

from torch import Tensor, nn

from genflow.backbones.base import GroupedBackbone
from genflow.inverse_heads.grouped import GroupedInverse
from genflow.layers.patches import unpatchify
from genflow.losses.base import Loss
from genflow.ranges import NotNegative
from genflow.registry import INVERSE_HEADS


@INVERSE_HEADS.register_module()
class HiddenAlignment(GroupedInverse):
    """Each group's hidden state, seen through a light projection, matches the flow's state it faces.

    The reverse model never returns to the data dimension between groups, and the projections are dropped
    for sampling. How groups, targets and guidance meet: :class:`~genflow.inverse_heads.grouped.GroupedInverse`.

    Args:
        backbone: the reverse model.
        loss: distance between projected hidden states and (normalised) trajectory states.
        projection: ``linear`` or ``mlp`` (two layers), from the width to a token's features.
        trajectory_norm, norm_warmup: as in :class:`~genflow.inverse_heads.grouped.GroupedInverse`.

    Raises:
        ValueError: the backbone's states are not hidden ones.
    """

    def __init__(
        self,
        backbone: GroupedBackbone,
        loss: Loss,
        projection: Literal["linear", "mlp"] = "linear",
        trajectory_norm: Literal["state", "sample", "none"] = "state",
        norm_warmup: NotNegative = 200,
    ):
        super().__init__(backbone, loss, trajectory_norm, norm_warmup)
        if backbone.states != "hidden":
            raise ValueError(f"hidden alignment needs a backbone with states 'hidden', found '{backbone.states}'")
        features = backbone.image_shape[0] * backbone.patch_size**2
        self.projections = nn.ModuleList(
            _projection(projection, backbone.state_features, features) for _ in range(backbone.groups)
        )

    def project(self, states: list[Tensor]) -> list[Tensor]:
        """(B, T, W) hidden states to (B, C, H, W) through the projection of each group."""
        backbone = self.backbone
        return [
            unpatchify(projection(state), backbone.patch_size, backbone.image_shape[0])
            for projection, state in zip(self.projections, states, strict=True)
        ]


def _projection(form: str, width: int, features: int) -> nn.Module:
    last = nn.Linear(width, features)
    nn.init.zeros_(last.bias)
    return last if form == "linear" else nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
