"""Hidden alignment: BiFlow's supervision of the reverse model (spec 3.4 to 3.6)."""

from typing import Literal

import torch
from torch import Tensor, nn

from genflow.backbones.base import GroupedBackbone
from genflow.condition import Condition
from genflow.flow_teachers.base import FlowTeacher, Trajectory
from genflow.guidance.base import Guidance
from genflow.inverse_heads.base import InverseHead, InverseOutput
from genflow.layers.patches import unpatchify
from genflow.losses.base import Loss
from genflow.registry import INVERSE_HEADS


class TrajectoryNorm(nn.Module):
    """Divides the states of a trajectory by their root mean square (norm control, spec 3.5).

    Args:
        states: number of states to normalise.
        per: ``state``: one running scalar per state, frozen after ``warmup`` updates, so that the target
            carries the relative size of samples; ``sample``: each sample by its own.
        warmup: updates over which the running mean square is averaged; the first still divides by 1.
    """

    def __init__(self, states: int, per: Literal["state", "sample"], warmup: int):
        super().__init__()
        self.per = per
        self.warmup = warmup
        self.register_buffer("mean_square", torch.ones(states))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.seen: list[Tensor] = []

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """Normalise (B, C, H, W) states; in training mode :meth:`after_update` learns from them."""
        if self.per == "sample":
            return [state / state.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() for state in states]
        if self.training:
            squares = torch.stack([state.detach().flatten(1).square().mean(dim=1) for state in states])
            self.seen.append(squares.to(self.mean_square.dtype))
        return [state / scale for state, scale in zip(states, self.mean_square.sqrt(), strict=True)]

    def after_update(self) -> None:
        """Learn once per update, from all its micro-batches and processes."""
        if not self.seen:
            return
        square = torch.cat(self.seen, dim=1).mean(dim=1)
        self.seen.clear()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(square)
            square /= torch.distributed.get_world_size()
        # Without a branch on the counter, a GPU is not made to wait for it.
        learning = self.updates < self.warmup
        self.updates += learning
        self.mean_square.lerp_(square, learning.to(square.dtype) / self.updates.clamp(min=1))


@INVERSE_HEADS.register_module()
class HiddenAlignment(InverseHead):
    """Each group's hidden state, seen through a light projection, matches the flow's state it faces.

    Group i faces state x^i, i = 0 .. groups - 1; the latent z = x^groups is the input and gives no term.
    The reverse model never returns to the data dimension between groups, and the projections are dropped
    for sampling.

    With a guidance module the groups output guided states, which feed the next group as they do when
    sampling; the projections see the unguided states that they imply, recovered with a null branch on the
    same input that carries no gradient. The denoising stage, which does not see the class, continues both
    branches of the last group, so that the sample can be recovered in the same way.

    Args:
        backbone: the reverse model.
        loss: distance between projected hidden states and (normalised) trajectory states.
        projection: ``linear`` or ``mlp`` (two layers), from the width to a token's features.
        trajectory_norm: normalisation of the targets, see :class:`TrajectoryNorm`; ``none`` for none.
        norm_warmup: updates that the running scalars of ``state`` learn from.
    """

    def __init__(
        self,
        backbone: GroupedBackbone,
        loss: Loss,
        projection: Literal["linear", "mlp"] = "linear",
        trajectory_norm: Literal["state", "sample", "none"] = "state",
        norm_warmup: int = 200,
    ):
        super().__init__()
        self.backbone = backbone
        self.loss = loss
        features = backbone.image_shape[0] * backbone.patch_size**2
        self.projections = nn.ModuleList(
            _projection(projection, backbone.width, features) for _ in range(backbone.groups)
        )
        self.trajectory_norm = (
            None
            if trajectory_norm == "none"
            else TrajectoryNorm(backbone.groups, trajectory_norm, norm_warmup)
        )

    def forward(self, z: Tensor, condition: Condition, guidance: Guidance | None = None) -> InverseOutput:
        backbone = self.backbone
        condition.require(*backbone.uses, user=type(backbone).__name__)
        unlabelled = condition.unlabelled(backbone.num_classes)
        # A scale means nothing without a class; the reference is then trained at every scale alike.
        dropped = condition.dropped(backbone.num_classes)
        states, hidden = backbone.embed(z), [None] * backbone.groups
        for index in reversed(range(backbone.groups)):
            entering, states = states, backbone.group(index, states, condition)
            hidden[index] = states
            if guidance is not None:
                with torch.no_grad():
                    null = backbone.group(index, entering, unlabelled)
                hidden[index] = guidance.recover(states, null, condition.guidance, dropped)
        sample = backbone.finish(states, condition)
        if guidance is not None:
            with torch.no_grad():
                null_sample = backbone.finish(null, unlabelled)
            sample = guidance.recover(sample, null_sample, condition.guidance, dropped)
        return InverseOutput(sample, hidden)

    def check_teacher(self, teacher: FlowTeacher) -> None:
        if teacher.blocks != self.backbone.groups:
            raise ValueError(f"the backbone has {self.backbone.groups} groups, the teacher {teacher.blocks} blocks")

    def project(self, hidden: list[Tensor]) -> list[Tensor]:
        """(B, T, W) hidden states to (B, C, H, W) through the projection of each group."""
        backbone = self.backbone
        return [
            unpatchify(projection(state), backbone.patch_size, backbone.image_shape[0])
            for projection, state in zip(self.projections, hidden, strict=True)
        ]

    def supervise(self, hidden: list[Tensor], trajectory: Trajectory) -> dict[str, Tensor]:
        """One term per group: ``align_0`` .. ``align_{groups - 1}``, each (B,)."""
        targets = trajectory.states[:-1]
        if self.trajectory_norm is not None:
            targets = self.trajectory_norm(targets)
        pairs = zip(self.project(hidden), targets, strict=True)
        return {
            f"align_{index}": self.loss(prediction, target)
            for index, (prediction, target) in enumerate(pairs)
        }


def _projection(form: str, width: int, features: int) -> nn.Module:
    last = nn.Linear(width, features)
    nn.init.zeros_(last.bias)
    return last if form == "linear" else nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
