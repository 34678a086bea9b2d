"""The contracts of guidance modules."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genflow.condition import Condition
from genflow.draws import Draws
from genflow.time_samplers.base import Times


class Guidance(nn.Module):
    """What training does for guidance; the families have different inputs."""

    kind = "guidance"
    #: The largest scale that the model is trained with; infinite where the scale is none of its inputs.
    highest_scale: float = float("inf")


def drop_labels(labels: Tensor, share: float, no_class: int, draws: Draws) -> Tensor:
    """(B,) labels, each replaced by ``no_class`` with probability ``share``."""
    return torch.where(draws.uniform("label drop") < share, no_class, labels)


def power_law(uniform: Tensor, low: float, high: float, power: float) -> Tensor:
    """Numbers in (0, 1) to scales in [low, high] whose density falls as scale^-power (docs/pmf.md, P6)."""
    if power == 1:
        return low * (high / low) ** uniform
    rest = 1 - power
    return (low**rest + uniform * (high**rest - low**rest)) ** (1 / rest)


class ReverseGuidance(Guidance):
    """Guidance of a reverse model: losses see what its outputs imply without guidance (BiFlow)."""

    #: Share of samples that lose their label.
    label_drop: float
    #: Whether the model learns to output guided quantities, so that one pass samples at any scale and losses
    #: see what :meth:`recover` returns; otherwise sampling takes two passes.
    in_training: bool = True

    def draw(self, draws: Draws) -> Tensor:
        """(B,) guidance scales for a batch."""
        raise NotImplementedError

    def drop_labels(self, labels: Tensor, num_classes: int, draws: Draws) -> Tensor:
        """(B,) labels, a share of ``label_drop`` replaced by ``num_classes``, "no class"."""
        return drop_labels(labels, self.label_drop, num_classes, draws)

    def recover(self, guided: Tensor, null: Tensor, scale: Tensor, dropped: Tensor) -> Tensor:
        """The unguided quantity that a guided one and its null branch imply.

        Args:
            guided: (B, ...) the model's guided output.
            null: (B, ...) its output without class on the same input; carries no gradient.
            scale: (B,) guidance scales.
            dropped: (B,) bool, samples without class; theirs is ``guided`` itself.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class GuidedTarget:
    """What guidance makes of the model's own velocities, without gradients.

    Where r = t the trained pass computes the velocity with class and scale anyway; a target may leave its share to it.

    Args:
        velocity: (B, C, H, W) guided velocity that training compares with, but for what ``own_share`` leaves out.
        tangent: (B, C, H, W) direction in which z moves for the derivative; of no meaning where r = t.
        own_share: (B, 1, 1, 1) factor of the trained pass's velocity at t; None for 0.
    """

    velocity: Tensor
    tangent: Tensor
    own_share: Tensor | None = None

    def complete(self, own: Tensor) -> Tensor:
        """The guided velocity, given the (B, C, H, W) velocity at t of the trained pass."""
        return self.velocity if self.own_share is None else self.velocity + self.own_share * own.detach()


#: The model's own velocity at time t of the (N,) rows of a batch under a condition of N rows, without gradient.
OwnVelocity = Callable[[Tensor, Condition], Tensor]


class VelocityGuidance(Guidance):
    """Guidance of a velocity model: the target is guided by the model's own velocities (MeanFlow, iMF, pMF)."""

    #: Share of samples that lose their label.
    label_drop: float
    #: Condition fields that say which guidance the model's output has; empty if it always has the same.
    condition_fields: tuple[str, ...] = ()

    def condition(self, draws: Draws, labels: Tensor, times: Times) -> Condition:
        """Labels, and scale (B,) and interval (B, 2) as drawn for training.

        The labels may lie on another device than draws and times.
        """
        raise NotImplementedError

    def dropped(self, draws: Draws, equal: Tensor) -> Tensor:
        """The rows of a global batch that lose their label (docs/pmf.md, P6).

        As many as uniform numbers lie below ``label_drop``; rows with r = t come first, for "no class" needs no
        other times.

        Args:
            draws: of the whole global batch, N samples.
            equal: (N,) bool, its rows with r = t.

        Returns:
            (N,) bool.
        """
        count = (draws.uniform("label drop") < self.label_drop).sum()
        rank = torch.argsort(torch.argsort(~equal, stable=True))
        return rank < count

    def forward(
        self,
        own: OwnVelocity,
        conditional: Tensor,
        condition: Condition,
        times: Times,
        dropped: Tensor,
        num_classes: int,
        needed_rows_only: bool = True,
    ) -> GuidedTarget:
        """Guide.

        What is drawn (times, dropped rows, scale, interval) may lie on the CPU while velocities and labels do not: the
        rows where the model is evaluated are then found without waiting for the device.

        Args:
            own: the model's velocity, evaluated as seldom as can be.
            conditional: (B, C, H, W) velocity of the path to the data, the target without guidance.
            condition: what :meth:`condition` returned.
            times: of the batch.
            dropped: (B,) bool, rows without label; theirs is the target without guidance.
            num_classes: the label that stands for "no class".
            needed_rows_only: evaluate ``own`` only where its value counts. Off for comparison.
        """
        raise NotImplementedError


class NegativeGuidance(Guidance):
    """Guidance by real samples of any class, which repel generated samples beside the generated ones (Drifting).

    Where attraction and repulsion balance, the model follows a p(x|c) - (a - 1) p(x) for the scale a.
    """

    #: Real samples of any class per label, N.
    negatives: int
    #: The least scale that is drawn; below 1 weights are below 0.
    min_scale: float = 1.0

    def draw(self, draws: Draws) -> Tensor:
        """(L,) guidance scales, 1 for no guidance."""
        raise NotImplementedError

    def weight(self, scale: Tensor, generated: int) -> Tensor:
        """(L,) scales to the weight of each negative beside ``generated`` samples of weight 1."""
        raise NotImplementedError

    def weights(self, scale: Tensor, generated: int, positives: int) -> Tensor:
        """(L,) scales to the (L, generated + negatives + positives) weights of all samples, 1 but for the negatives."""
        weights = scale.new_ones(len(scale), generated + self.negatives + positives)
        weights[:, generated : generated + self.negatives] = self.weight(scale, generated).unsqueeze(1)
        return weights
