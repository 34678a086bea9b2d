"""The contracts of field estimators."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.time_samplers.base import Times


class FieldEstimator(nn.Module):
    """What moves a sample: a drifting field in feature space, or a velocity along a path.

    The families have different inputs; each states its own ``forward``.
    """

    kind = "field estimator"


@dataclass(frozen=True)
class VelocityFields:
    """The velocities that a network implies, (B, C, H, W) float32 each.

    Args:
        average: u, from r to t; where r = t it is the instantaneous one.
        compound: V = u + (t - r) du/dt, what the identity of MeanFlow makes of it: to be compared with the
            velocity at t. The derivative carries no gradient.
        auxiliary: the velocity at t of the network's auxiliary head; None if it was not asked for.
    """

    average: Tensor
    compound: Tensor
    auxiliary: Tensor | None


class VelocityEstimator(FieldEstimator):
    """Velocities along the path z = (1 - t) x + t e from data x to noise e, t in [0, 1] (pMF, spec 1)."""

    #: The smallest time by which the distance from z to an image is divided.
    time_floor: float

    def conditional(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at (B, C, H, W) ``z`` of the path to ``x``: (z - x) / t, t no smaller than the floor."""
        return (z - x) / t.clamp(min=self.time_floor).view(-1, 1, 1, 1)

    def velocity(
        self,
        network: Backbone,
        z: Tensor,
        t: Tensor,
        r: Tensor,
        condition: Condition,
        heads: Sequence[str] = ("main",),
    ) -> dict[str, Tensor]:
        """The velocities from ``r`` to ``t`` of the heads at ``z``: (B, C, H, W) float32 each."""
        raise NotImplementedError

    def forward(
        self,
        network: Backbone,
        z: Tensor,
        times: Times,
        condition: Condition,
        tangent: Tensor,
        heads: Sequence[str] = ("main",),
    ) -> VelocityFields:
        """The velocities that training compares.

        Args:
            network: predicts images or velocities.
            z: (B, C, H, W) noisy data, float32.
            times: t and r of its rows.
            condition: what the network is told beside times.
            tangent: (B, C, H, W) dz/dt, along which ``z`` moves; no gradient.
            heads: ``main``, and ``auxiliary`` where its velocity is wanted.
        """
        raise NotImplementedError
