"""The contract of inverse heads: how a reverse model runs and is supervised by a flow's trajectory."""

from dataclasses import dataclass

from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.flow_teachers.base import FlowTeacher, Trajectory
from genflow.guidance.base import ReverseGuidance


@dataclass(frozen=True)
class InverseOutput:
    """One pass of a reverse model in training.

    Args:
        sample: (B, C, H, W) the unguided sample that the losses see.
        hidden: hidden[i] faces state i of the trajectory, i = 0 .. blocks - 1; unguided as well. Empty for a
            head that supervises the sample alone.
    """

    sample: Tensor
    hidden: list[Tensor]


class InverseHead(nn.Module):
    """A reverse model with its supervision. ``backbone`` is what samples; the rest is for training only."""

    kind = "inverse head"
    backbone: Backbone
    #: Whether the groups of the backbone are supervised, so that guidance can act on each of them.
    supervises_groups: bool = True

    def check_teacher(self, teacher: FlowTeacher) -> None:
        """Check that this head can be supervised by ``teacher``'s trajectories.

        Raises:
            ValueError: it cannot.
        """

    def forward(self, z: Tensor, condition: Condition, guidance: ReverseGuidance | None = None) -> InverseOutput:
        """Run the reverse model from noise z (B, C, H, W); ``guidance`` recovers unguided quantities."""
        raise NotImplementedError

    def supervise(self, hidden: list[Tensor], trajectory: Trajectory) -> dict[str, Tensor]:
        """The loss terms that tie ``hidden`` to the trajectory: ``{name: (B,)}``."""
        raise NotImplementedError
