"""What the inverse heads share that tie every group of a reverse model to a state of the flow's trajectory."""

from typing import Literal

import torch
from torch import Tensor

from genflow.backbones.base import GroupedBackbone
from genflow.condition import Condition
from genflow.flow_teachers.base import FlowTeacher, Trajectory
from genflow.guidance.base import ReverseGuidance
from genflow.inverse_heads.base import InverseHead, InverseOutput
from genflow.inverse_heads.trajectory_norm import TrajectoryNorm
from genflow.losses.base import Loss


class GroupedInverse(InverseHead):
    """Group i faces state x^i, i = 0 .. groups - 1; the latent z = x^groups is the input and gives no term.

    With guidance learned in training the groups output guided states, which feed the next group as they do
    when sampling; the losses see the unguided states that they imply, recovered with a null branch on the
    same input that carries no gradient (docs/biflow.md, B17). The finishing stage, which does not see the class,
    continues both branches of the last group, so that the sample can be recovered in the same way.

    Args:
        backbone: the reverse model.
        loss: distance between what the groups say and (normalised) trajectory states.
        trajectory_norm: normalisation of the targets, see
            :class:`~genflow.inverse_heads.trajectory_norm.TrajectoryNorm`; ``none`` for none.
        norm_warmup: updates that the running scalars of ``state`` learn from.
    """

    def __init__(
        self,
        backbone: GroupedBackbone,
        loss: Loss,
        trajectory_norm: Literal["state", "sample", "none"],
        norm_warmup: int,
    ):
        super().__init__()
        self.backbone = backbone
        self.loss = loss
        self.trajectory_norm = (
            None if trajectory_norm == "none" else TrajectoryNorm(backbone.groups, trajectory_norm, norm_warmup)
        )

    def check_teacher(self, teacher: FlowTeacher) -> None:
        if teacher.blocks != self.backbone.groups:
            raise ValueError(f"the backbone has {self.backbone.groups} groups, the teacher {teacher.blocks} blocks")

    def forward(self, z: Tensor, condition: Condition, guidance: ReverseGuidance | None = None) -> InverseOutput:
        backbone = self.backbone
        condition.require(*backbone.uses, user=type(backbone).__name__)
        recover = guidance is not None and guidance.in_training
        unlabelled = condition.unlabelled(backbone.num_classes)
        # A scale means nothing without a class; the reference is then trained at every scale alike.
        dropped = condition.dropped(backbone.num_classes)
        state, states = backbone.embed(z), [None] * backbone.groups
        for index in reversed(range(backbone.groups)):
            entering, state = state, backbone.group(index, state, condition)
            states[index] = state
            if recover:
                with torch.no_grad():
                    null = backbone.group(index, entering, unlabelled)
                states[index] = guidance.recover(state, null, condition.guidance, dropped)
        sample = backbone.finish(state, condition)
        if recover:
            with torch.no_grad():
                null_sample = backbone.finish(null, unlabelled)
            sample = guidance.recover(sample, null_sample, condition.guidance, dropped)
        return InverseOutput(sample, states)

    def project(self, states: list[Tensor]) -> list[Tensor]:
        """What the groups' (B, T, state_features) outputs say about the trajectory: (B, C, H, W) each."""
        raise NotImplementedError

    def targets(self, trajectory: Trajectory) -> list[Tensor]:
        """The (normalised) states x^0 .. x^{groups - 1} that :meth:`project` is to match."""
        states = trajectory.states[:-1]
        return states if self.trajectory_norm is None else self.trajectory_norm(states)

    def supervise(self, hidden: list[Tensor], trajectory: Trajectory) -> dict[str, Tensor]:
        """One term per group: ``align_0`` .. ``align_{groups - 1}``, each (B,)."""
        pairs = zip(self.project(hidden), self.targets(trajectory), strict=True)
        return {f"align_{index}": self.loss(prediction, target) for index, (prediction, target) in enumerate(pairs)}
