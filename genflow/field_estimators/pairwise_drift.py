"""Drifts that are sums over pairs of points, computed in blocks of bounded size.

Shapes: F features of equal shape, L labels, T positions, n groups of a block (features x labels x positions),
K = G + N + P points of a group in the order generated, negative, positive, C channels, R temperatures.

A drift needs two means over the global batch before it is known, so a block is visited three times: for the mean
distance, for the mean square of the forces, and for the drift. What fits in the memory bound is kept from one visit
to the next, the rest is computed again. Neither a (n, G, K, C) tensor nor copies of whole features are made.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from genflow.field_estimators.annealing import AnnealingSection, TemperatureAnnealing
from genflow.field_estimators.base import (
    Drift,
    DriftEstimator,
    DriftStatistics,
    FeaturePart,
    FeatureSets,
    Neighbours,
)
from genflow.field_estimators.neighbours import count_neighbours
from genflow.layers.known_slope import KnownSlope
from genflow.layers.precision import full_precision
from genflow.ranges import Above0, Length, Positive

_LEAST_SQUARE = 1e-8
_LEAST_SCALE = 1e-3
# Blocks that fit in a cache are several times faster on a CPU; the rest of the memory keeps results.
_BLOCK_SHARE = 8


@dataclass(frozen=True)
class Counts:
    """Points of a group: generated, negative, positive."""

    generated: int
    negative: int
    positive: int

    @property
    def total(self) -> int:
        """K."""
        return self.generated + self.negative + self.positive

    def sides(self) -> Tensor:
        """(G + N,) 0 or 1: generated samples, and negatives, dealt out in turn to two halves that are independent."""
        return torch.cat([torch.arange(count) % 2 for count in (self.generated, self.negative)])


class PairwiseDrift(DriftEstimator):
    """A drift F_i = sum_k c_ik y_k, whose coefficients follow from distances between the points.

    Distances are divided by their mean. The forces of every temperature are divided by their root mean square, and
    added. The mean distance and the mean squares are those of the global batch, all labels and positions of a
    feature together (docs/drifting.md, D6 to D9).

    Args:
        temperatures: of the kernel.
        memory_mib: MiB of workspace, beside the features and the gradient; less memory takes more time. A group
            is not divided: its points in float32 may need more.
        normalize_distances: divide by the mean distance; otherwise temperatures are in the unit of the feature.
        normalize_forces: divide by the root mean square.
        annealing: of the temperatures over the first updates; None has them as they are.
    """

    def __init__(
        self,
        temperatures: Annotated[Sequence[Above0], Length()] = (0.2, 0.05, 0.02),
        memory_mib: Positive = 256,
        normalize_distances: bool = True,
        normalize_forces: bool = True,
        annealing: AnnealingSection | None = None,
    ):
        super().__init__()
        self.temperatures = tuple(temperatures)
        self.memory = memory_mib * 2**20
        self.normalize_distances = normalize_distances
        self.normalize_forces = normalize_forces
        self.annealing = None if annealing is None else TemperatureAnnealing(annealing)

    def current_temperatures(self) -> tuple[float | Tensor, ...]:
        """Those of this update; scalars on the device while they are annealed."""
        if self.annealing is None:
            return self.temperatures
        factor = self.annealing()
        return tuple(value * factor for value in self.temperatures)

    def sources(self, counts: Counts) -> int:
        """How many of the first points need distances to all points: at least the generated ones."""
        return counts.generated

    def log_kernel(self, distances: Tensor, temperature: float | Tensor) -> Tensor:
        """The logarithm of what points at such distances, in units of the mean distance, are to each other."""
        raise NotImplementedError

    def coefficients(
        self, distances: Tensor, weights: Tensor | None, counts: Counts, temperature: float | Tensor
    ) -> Tensor:
        """What the points contribute to the forces.

        Args:
            distances: (n, sources, K), in units of the mean distance; not to be changed.
            weights: (n, K); None for 1.
            counts: of the points.
            temperature: of the kernel, a scalar.

        Returns:
            (n, G, K); every row sums to 0, so that forces do not depend on the origin.
        """
        raise NotImplementedError

    def forward(
        self,
        features: Mapping[str, FeatureSets],
        weights: Tensor | None = None,
        statistics: Mapping[str, DriftStatistics] | None = None,
    ) -> Drift:
        losses: dict[str, Tensor] = {}
        found: dict[str, DriftStatistics] = {}
        for family in _families(self, features, weights):
            with torch.no_grad(), full_precision(family.device):
                known = family.statistics() if statistics is None else [statistics[name] for name in family.names]
                values, slopes = family.losses(known)
            found |= dict(zip(family.names, known, strict=True))
            for name, value, slope in zip(family.names, values, slopes, strict=True):
                losses[name] = KnownSlope.apply(features[name].generated, value, slope)
        # In the order of the features, whatever the families.
        return Drift({name: losses[name] for name in features}, {name: found[name] for name in features})

    def neighbours(self, features: Mapping[str, FeatureSets], statistics: Mapping[str, DriftStatistics]) -> Neighbours:
        units = {
            name: found.scale.clamp(min=_LEAST_SCALE) if self.normalize_distances else torch.ones_like(found.scale)
            for name, found in statistics.items()
        }
        kernels = [partial(self.log_kernel, temperature=value) for value in self.current_temperatures()]
        return count_neighbours(features, units, kernels)

    @torch.no_grad()
    def batch_statistics(self, parts: Sequence[FeaturePart]) -> dict[str, DriftStatistics]:
        def total(visit: Callable[[_Family], Tensor]) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = {}
            for part in parts:
                for family in _families(self, *part()):
                    with full_precision(family.device):
                        values = visit(family)
                    for name, value in zip(family.names, values, strict=True):
                        sums[name] = sums[name] + value if name in sums else value
            return dict(zip(sums, _over_processes(torch.stack([*sums.values()])), strict=True))

        scales = {name: _mean_distance(value) for name, value in total(_Family.distance_sums).items()}

        def forces(family: _Family) -> Tensor:
            return family.force_sums(torch.stack([scales[name] for name in family.names]))

        return {name: DriftStatistics(scales[name], _mean_square(value)) for name, value in total(forces).items()}


def _families(field: PairwiseDrift, features: Mapping[str, FeatureSets], weights: Tensor | None) -> Iterator["_Family"]:
    """Features of equal shape together, as many as can be kept, so that one family at a time takes memory.

    Large ones come first, while there are few derivatives yet.
    """
    names: dict[tuple, list[str]] = defaultdict(list)
    for name, sets in features.items():
        names[sets.generated.shape].append(name)
    for _, members in sorted(names.items(), key=lambda item: math.prod(item[0]), reverse=True):
        one = _Family(field, {members[0]: features[members[0]]}, weights)
        count = max(1, one.kept.room // one.kept_size)
        for start in range(0, len(members), count):
            yield _Family(field, {name: features[name] for name in members[start : start + count]}, weights)


def _over_processes(sums: Tensor) -> Tensor:
    """Add up the sums of all processes, in place."""
    all_reduce(sums)
    return sums


def _mean_distance(sums: Tensor) -> Tensor:
    """(..., 2) sums of :meth:`_Family.distance_sums` to float32 means."""
    return (sums[..., 0] / sums[..., 1]).float()


def _mean_square(sums: Tensor) -> Tensor:
    """(..., R + 1) sums of :meth:`_Family.force_sums` to (..., R) float32 means."""
    return (sums[..., :-1] / sums[..., -1:]).float()


class _Kept:
    """Results that fit in a number of bytes."""

    def __init__(self, room: int):
        self.room = room
        self.results: dict[object, Tensor] = {}

    def __call__(self, key: object, compute: Callable[[], Tensor]) -> Tensor:
        if key in self.results:
            return self.results[key]
        result = compute()
        size = result.numel() * result.element_size()
        if size <= self.room:
            self.room -= size
            self.results[key] = result
        return result

    def drop(self, key: object) -> None:
        """Make room again."""
        result = self.results.pop(key, None)
        if result is not None:
            self.room += result.numel() * result.element_size()


@dataclass(frozen=True)
class _Block:
    """Some groups of a family."""

    number: int
    features: slice
    labels: slice
    positions: slice


class _Family:
    """Features of equal shape, and what was computed of them."""

    def __init__(self, field: PairwiseDrift, features: Mapping[str, FeatureSets], weights: Tensor | None):
        self.field = field
        self.names = list(features)
        self.sets = list(features.values())
        self.weights = None if weights is None else weights.float()
        first = self.sets[0]
        self.labels, generated, self.positions, self.channels = first.generated.shape
        self.counts = Counts(generated, first.negative.shape[1], first.positive.shape[1])
        self.device = first.generated.device
        temperatures, rows = len(field.temperatures), field.sources(self.counts)
        per_group = 4 * (
            (2 * self.counts.total + (temperatures + 1) * generated) * self.channels
            + (temperatures + 4) * rows * self.counts.total
        )
        block = field.memory // _BLOCK_SHARE
        self.blocks = list(_divide(len(self.sets), self.labels, self.positions, max(1, block // per_group)))
        self.kept = _Kept(field.memory - block)

    @property
    def kept_size(self) -> int:
        """Bytes that keep all results from one visit to the next: points and distances, then forces."""
        counts, temperatures = self.counts, len(self.field.temperatures)
        entries = counts.total * (self.channels + self.field.sources(counts))
        groups = len(self.sets) * self.labels * self.positions
        return 4 * groups * max(entries, temperatures * counts.generated * self.channels)

    def points(self, block: _Block) -> Tensor:
        """(n, K, C) float32."""
        return self.kept(("points", block.number), lambda: self._gather(block))

    def _gather(self, block: _Block) -> Tensor:
        counts = self.counts
        starts = (0, counts.generated, counts.generated + counts.negative)
        features = self.sets[block.features]
        labels, positions = self._extent(block)
        points = torch.empty(len(features), labels, positions, counts.total, self.channels, device=self.device)
        for place, sets in zip(points, features, strict=True):
            for start, part in zip(starts, (sets.generated, sets.negative, sets.positive), strict=True):
                place[:, :, start : start + part.shape[1]] = part[block.labels, :, block.positions].transpose(1, 2)
        return points.flatten(0, 2)

    def _extent(self, block: _Block) -> tuple[int, int]:
        """How many labels and positions."""
        return len(range(self.labels)[block.labels]), len(range(self.positions)[block.positions])

    def block_weights(self, block: _Block) -> Tensor | None:
        """(n, K), or None."""
        if self.weights is None:
            return None
        repeated = self.weights[block.labels].repeat_interleave(self._extent(block)[1], dim=0)
        return repeated.repeat(len(self.sets[block.features]), 1)

    def distances(self, block: _Block, points: Tensor) -> Tensor:
        """(n, sources, K)."""
        return self.kept(("distances", block.number), lambda: self._distances(points))

    def _distances(self, points: Tensor) -> Tensor:
        squares = points.square().sum(dim=-1)
        rows = points[:, : self.field.sources(self.counts)]
        product = torch.baddbmm(squares.unsqueeze(1), rows, points.mT, alpha=-2)
        product += squares[:, : rows.shape[1]].unsqueeze(2)
        return product.clamp_(min=_LEAST_SQUARE).sqrt_()

    def distance_sums(self) -> Tensor:
        """(F, 2) float64: weighted distances from generated points, and their weights."""
        sums = torch.zeros(len(self.names), 2, dtype=torch.float64, device=self.device)
        for block in self.blocks:
            distances = self.distances(block, self.points(block))[:, : self.counts.generated]
            weights = self.block_weights(block)
            columns = distances.sum(dim=1)
            weights = torch.ones_like(columns) if weights is None else weights
            features = len(self.sets[block.features])
            sums[block.features, 0] += (columns * weights).view(features, -1).sum(dim=1).double()
            sums[block.features, 1] += self.counts.generated * weights.view(features, -1).sum(dim=1).double()
        return sums

    def forces(self, block: _Block, scale: Tensor) -> Tensor:
        """(n, R, G, C), in units of :meth:`unit`."""
        return self.kept(("forces", block.number), lambda: self._forces(block, scale))

    def _forces(self, block: _Block, scale: Tensor) -> Tensor:
        field, counts, weights = self.field, self.counts, self.block_weights(block)
        points = self.points(block)
        distances = self.distances(block, points)
        if field.normalize_distances:
            distances = distances / self._per_group(scale, block).clamp(min=_LEAST_SCALE)
        temperatures = len(field.temperatures)
        coefficients = distances.new_empty(len(distances), temperatures, counts.generated, counts.total)
        for index, temperature in enumerate(field.current_temperatures()):
            coefficients[:, index] = field.coefficients(distances, weights, counts, temperature)
        forces = torch.bmm(coefficients.flatten(1, 2), points)
        forces /= self._per_group(self.unit(scale), block)
        self.kept.drop(("distances", block.number))
        self.kept.drop(("points", block.number))
        return forces.unflatten(1, (temperatures, -1))

    def unit(self, scale: Tensor) -> Tensor:
        """The unit of the features, in which points lie a distance of about sqrt(C) apart; like ``scale``."""
        if not self.field.normalize_distances:
            return torch.ones_like(scale)
        return (scale / math.sqrt(self.channels)).clamp(min=_LEAST_SCALE)

    def _per_group(self, values: Tensor, block: _Block) -> Tensor:
        """(F, ...) values of features to (n, ..., 1, 1) of groups."""
        return values[block.features].repeat_interleave(math.prod(self._extent(block)), dim=0)[..., None, None]

    def force_sums(self, scale: Tensor) -> Tensor:
        """(F, R + 1) float64: the squares of the forces, and the number of their elements."""
        temperatures = len(self.field.temperatures)
        sums = torch.zeros(len(self.names), temperatures + 1, dtype=torch.float64, device=self.device)
        for block in self.blocks:
            forces = self.forces(block, scale)
            squares = torch.linalg.vector_norm(forces, dim=(2, 3)).double().square()
            sums[block.features, :-1] += squares.view(len(self.sets[block.features]), -1, temperatures).sum(dim=1)
        sums[:, -1] = self.labels * self.positions * self.counts.generated * self.channels
        return sums

    def statistics(self) -> list[DriftStatistics]:
        """The means over all processes, per feature."""
        scale = _mean_distance(_over_processes(self.distance_sums()))
        force = _mean_square(_over_processes(self.force_sums(scale)))
        return [DriftStatistics(*pair) for pair in zip(scale, force, strict=True)]

    def losses(self, statistics: Sequence[DriftStatistics]) -> tuple[Tensor, list[Tensor]]:
        """(F, L) losses, and their derivatives with respect to the generated points, (L, G, T, C) each."""
        scale = torch.stack([entry.scale for entry in statistics])
        force = torch.stack([entry.force for entry in statistics])
        share = force.clamp(min=_LEAST_SQUARE).rsqrt() if self.field.normalize_forces else torch.ones_like(force)
        elements = self.positions * self.counts.generated * self.channels
        slope_per_drift = -2 / (elements * self.unit(scale))
        slopes = [torch.empty_like(sets.generated) for sets in self.sets]
        losses = scale.new_zeros(len(self.sets), self.labels)
        for block in self.blocks:
            forces = self.forces(block, scale)
            self.kept.drop(("forces", block.number))
            shares = self._per_group(share, block)[..., 0].mT  # (n, 1, R)
            drift = torch.bmm(shares, forces.flatten(2)).view(len(forces), *forces.shape[2:])
            squares = torch.linalg.vector_norm(drift, dim=(1, 2)).square()
            groups = (len(self.sets[block.features]), *self._extent(block))
            losses[block.features, block.labels] += squares.view(groups).sum(dim=2) / elements
            drift *= self._per_group(slope_per_drift, block)
            for slope, part in zip(slopes[block.features], drift.view(*groups, *drift.shape[1:]), strict=True):
                slope[block.labels, :, block.positions] = part.transpose(1, 2)
        return losses, slopes


def _divide(features: int, labels: int, positions: int, groups: int) -> Iterator[_Block]:
    """Blocks of at most ``groups`` groups each."""
    feature_step = max(1, groups // (labels * positions))
    position_step = min(positions, max(1, groups // labels))
    label_step = min(labels, groups)
    starts = itertools.product(
        range(0, features, feature_step), range(0, labels, label_step), range(0, positions, position_step)
    )
    for number, (feature, label, position) in enumerate(starts):
        yield _Block(
            number,
            slice(feature, feature + feature_step),
            slice(label, label + label_step),
            slice(position, position + position_step),
        )
