"""The contracts of field estimators."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.time_samplers.base import Times


class FieldEstimator(nn.Module):
    """What moves a sample: a drifting field in feature space, or a velocity along a path.

    The families have different inputs; each states its own ``forward``.
    """

    kind = "field estimator"
    #: Whether it differentiates networks with their graph, which checkpoints inside them do not allow.
    keeps_graph: bool = False


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
    """Velocities along the path z = (1 - t) x + t e from data x to noise e, t in [0, 1] (docs/pmf.md, P1)."""

    #: The smallest time by which the distance from z to an image is divided.
    time_floor: float

    def conditional(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at (B, C, H, W) ``z`` of the path to ``x``: (z - x) / t, t no smaller than the floor."""
        return (z - x) / t.clamp(min=self.time_floor).view(-1, 1, 1, 1)

    def timed(self, condition: Condition, t: Tensor, r: Tensor) -> Condition:
        """The condition with (B,) times ``t`` and durations."""
        return replace(condition, time=t, duration=t - r)

    def convert(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """A network's (B, C, H, W) output at ``z`` and (B,) ``t`` to a velocity, in float32 also under autocast."""
        raise NotImplementedError

    def velocity(
        self,
        network: Callable[..., dict[str, Tensor]],
        z: Tensor,
        t: Tensor,
        r: Tensor,
        condition: Condition,
        heads: Sequence[str] = ("main",),
    ) -> dict[str, Tensor]:
        """The velocities from ``r`` to ``t`` of the heads at ``z``: (B, C, H, W) float32 each."""
        outputs = network(z, self.timed(condition, t, r), heads)
        return {name: self.convert(output, z, t) for name, output in outputs.items()}

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
            condition: without times.
            tangent: (B, C, H, W) dz/dt, along which ``z`` moves; no gradient.
            heads: ``main``, and ``auxiliary`` where its velocity is wanted.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FeatureSets:
    """One feature of all samples: L labels, T positions, C channels; every (label, position) is a group of its own.

    Args:
        generated: (L, G, T, C), what is moved; the only one with a gradient.
        positive: (L, P, T, C) real samples of the label.
        negative: (L, N, T, C) real samples that repel beside the generated ones; N may be 0.
    """

    generated: Tensor
    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class DriftStatistics:
    """Means over the global batch by which a feature's drift is normalised.

    Args:
        scale: scalar, the mean distance between points.
        force: (R,), the mean square of the drift of every temperature.
    """

    scale: Tensor
    force: Tensor


@dataclass(frozen=True)
class Drift:
    """How far generated samples are from where their drift takes them.

    Args:
        losses: (L,) per feature, means over the other axes; their gradient moves the generated samples.
        statistics: per feature.
    """

    losses: dict[str, Tensor]
    statistics: dict[str, DriftStatistics]


@dataclass(frozen=True)
class Neighbours:
    """Real samples around generated ones, means over groups and features.

    Args:
        coverage: scalar, the share of a group's positives that are the nearest one of some generated sample.
        effective: (R,), for every temperature the number of positives that a generated sample is drawn to: exp of the
            entropy of its kernel, normalised over the positives.
    """

    coverage: Tensor
    effective: Tensor


#: Computes the features of one part of a batch and the (L, G + N + P) weights of their samples (None: all 1).
FeaturePart = Callable[[], tuple[Mapping[str, FeatureSets], Tensor | None]]


class DriftEstimator(FieldEstimator):
    """A drift of generated samples in feature space, to real ones and away from each other (docs/drifting.md, D5)."""

    #: Temperatures of the kernel, in units of the mean distance; a drift is a sum over them.
    temperatures: tuple[float, ...]
    #: Whether weights of negatives may be below 0, so that they attract.
    takes_attracting_negatives: bool = True
    #: Generated samples per label that it needs.
    least_generated: int = 1

    def forward(
        self,
        features: Mapping[str, FeatureSets],
        weights: Tensor | None = None,
        statistics: Mapping[str, DriftStatistics] | None = None,
    ) -> Drift:
        """Compute losses whose gradient is the drift.

        Args:
            features: what the samples are compared in, each feature for itself.
            weights: (L, G + N + P) of generated, negative and positive samples; None for 1.
            statistics: means over the global batch; None takes those of these features, summed over processes.
        """
        raise NotImplementedError

    def batch_statistics(self, parts: Sequence[FeaturePart]) -> dict[str, DriftStatistics]:
        """The statistics of a batch that is computed in parts; every part is called more than once."""
        raise NotImplementedError

    def neighbours(self, features: Mapping[str, FeatureSets], statistics: Mapping[str, DriftStatistics]) -> Neighbours:
        """How many real samples take part, without gradient."""
        raise NotImplementedError
