"""One-step generators trained further, by distances between distributions (arXiv 2604.28190, 2607.02375)."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.dist import all_gather, get_dist_info
from torch import Tensor, nn

from genflow.data.sample_queue import widened
from genflow.distribution_distances.base import DistributionDistance
from genflow.draws import Draws
from genflow.errors import nearest
from genflow.feature_encoders.base import FeatureEncoder
from genflow.generators.base import Generator
from genflow.layers.known_slope import KnownSlope
from genflow.layers.precision import full_precision, without_graph
from genflow.methods.base import Method
from genflow.methods.held_out import HeldOutWatch
from genflow.ranges import Interval, NotNegative, PlainName, Positive, Size
from genflow.registry import METHODS


@dataclass
class Comparison:
    """A distance in the features of an encoder.

    Args:
        distance: each feature has one of its own.
        encoder: None compares the generator's samples themselves, the feature ``global``.
        features: names of those that count, with equal weights; None for all.
        weight: its share in the loss.
    """

    distance: DistributionDistance
    encoder: FeatureEncoder | None = None
    features: Sequence[str] | None = None
    weight: Size = 1.0


@dataclass
class SamplingSection:
    """How samples are made, in training and afterwards; None leaves what the run of the start says.

    Args:
        steps: from noise to data; 1 evaluates a generator of many steps once.
        guidance: scale.
        interval: first and last time with guidance.
    """

    steps: Positive | None = None
    guidance: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class _Term:
    """A distance in one feature.

    Args:
        name: of the comparison.
        encoder: its place among the method's encoders; None for the samples themselves.
        feature: its name.
        weight: in the loss.
        trained: whether it is a part of the loss.
    """

    name: str
    encoder: int | None
    feature: str
    weight: float
    trained: bool


@dataclass(frozen=True)
class Known:
    """What is found out about a whole update.

    Args:
        samples: of all processes and parts.
        distances: scalars, one for each term.
        losses: scalars, for each trained one.
        slopes: (B, T, C) derivatives of the losses by features of generated samples.
    """

    samples: int
    distances: list[Tensor]
    losses: list[Tensor]
    slopes: list[Tensor]

    def of(self, start: int, end: int) -> "Known":
        """With the slopes of some samples."""
        return replace(self, slopes=[slope[start:end] for slope in self.slopes])


@METHODS.register_module()
class PostTraining(Method):
    """Train a run's generator on a sum of distances w D / (sg(D) + offset), D between features of samples and data.

    As many samples are generated as a batch has images, of their classes. A distance sees those of all processes and
    micro-batches, whose number therefore changes nothing: with several micro-batches all features are computed first,
    without a graph, and once more with one.

    Args:
        start: ``$name`` of a prerequisite; its generator makes a sample in one evaluation.
        distances: by names, under which they are logged.
        held_out: distances that are measured and never trained on. If they become worse while the others become
            better, a warning says so: the generator then learns what encoders can be deceived with.
        start_samples: samples of the start and of the data with which statistics of distances begin.
        offset: c, so that each distance counts by its relative change as long as it is larger; None takes the
            distances as they are.
        sampling: how samples are made.

    Raises:
        ValueError: samples take more than one evaluation, or an encoder lacks a feature.
    """

    frozen = ("start.codec", "encoders")
    training_only = ("distances", "held_out")
    artifact = "start.network"

    def __init__(
        self,
        start: Generator,
        distances: dict[PlainName, Comparison] | None = None,
        held_out: dict[PlainName, Comparison] | None = None,
        start_samples: NotNegative = 0,
        offset: Size | None = 0.01,
        sampling: SamplingSection | None = None,
    ):
        super().__init__()
        distances, held_out = distances or {}, held_out or {}
        for name in distances.keys() & held_out.keys():
            raise ValueError(f"held_out.{name}: a distance has the same name")
        _set_sampling(start, sampling or SamplingSection())
        self.start = start
        self.start_samples = start_samples
        self.offset = offset
        self.progress = tuple(distances)
        self.encoders = nn.ModuleList()
        self.distances = nn.ModuleList()
        self.terms: list[_Term] = []  # trained ones come first
        for compared, trained in ((distances, True), (held_out, False)):
            for name, comparison in compared.items():
                self._add(name, comparison, trained)
        self.watch = HeldOutWatch([term.name for term in self.terms], self._trained)
        self.generator = start
        start.network.requires_grad_(True)
        self.freeze()

    def _add(self, name: str, comparison: Comparison, trained: bool) -> None:
        encoder, place = comparison.encoder, None
        if encoder is not None:
            known = [place for place, other in enumerate(self.encoders) if other is encoder]
            place = known[0] if known else len(self.encoders)
            if not known:
                self.encoders.append(encoder)
        names = ("global",) if encoder is None else encoder.feature_names
        chosen = names if comparison.features is None else comparison.features
        for feature in chosen:
            if feature not in names:
                raise ValueError(f"{name}: features: the encoder has no '{feature}'{nearest(feature, names)}")
        terms = [_Term(name, place, feature, comparison.weight / len(chosen), trained) for feature in chosen]
        device = self.start.device
        with without_graph():
            features = self._features(torch.zeros(1, *self.start.codec.latent_shape, device=device), terms)
        for feature in features:
            distance = copy.deepcopy(comparison.distance)
            distance.begin(*feature.shape[1:])
            self.distances.append(distance.to(device))
        self.terms += terms

    @property
    def _trained(self) -> int:
        """How many terms the loss has."""
        return sum(term.trained for term in self.terms)

    def observe(self, images: Tensor, labels: Tensor, draws: Draws) -> None:
        with without_graph():
            generated = self._features(self._generate(labels, draws, "start "))
            real = self._features(self._real(images))
            with full_precision(images.device):
                for distance, *both in zip(self.distances, generated, real, strict=True):
                    distance.observe(*map(_of_all, both))

    def prepare(self, parts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Adds what is found out over all micro-batches; one alone finds it in its own pass."""
        if len(parts) == 1:
            return list(parts)
        with without_graph():
            generated = [self._features(self._generate(part["labels"], part["draws"])) for part in parts]
            real = [self._features(self._real(part["images"])) for part in parts]
        joined = ([torch.cat(pieces) for pieces in zip(*each, strict=True)] for each in (generated, real))
        known = self._compare(*joined, parts[0]["draws"])
        ends = list(itertools.accumulate(len(part["labels"]) for part in parts))
        return [
            {**part, "known": known.of(end - len(part["labels"]), end)} for part, end in zip(parts, ends, strict=True)
        ]

    def forward(self, images: Tensor, labels: Tensor, draws: Draws, known: Known | None = None) -> dict[str, Tensor]:
        """As in the contract; ``known`` is of :meth:`prepare`.

        Raises:
            ValueError: there are no distances.
        """
        trained = self.terms[: self._trained]
        if not trained:
            raise ValueError("distances: there are none, so there is nothing to train on")
        samples = self._generate(labels, draws)
        features = self._features(samples, trained)
        if known is None:
            with without_graph():
                held_out = self._features(samples.detach(), self.terms[len(trained) :])
                real = self._features(self._real(images))
            known = self._compare([*(feature.detach() for feature in features), *held_out], real, draws)
        self.watch.latest = torch.stack(known.distances)
        terms: dict[str, Tensor] = {}
        for term, value in zip(self.terms, known.distances, strict=True):
            terms[term.name] = terms.get(term.name, 0.0) + value
        # The loop takes the mean of parts and processes, slopes belong to the sum over all samples.
        share = known.samples / len(images)
        losses = [
            KnownSlope.apply(feature, loss, slope * share)
            for feature, loss, slope in zip(features, known.losses, known.slopes, strict=True)
        ]
        return {"loss": torch.stack(losses).sum(), **terms}

    def _compare(self, generated: Sequence[Tensor], real: Sequence[Tensor], draws: Draws) -> Known:
        """Distances of the update, of which this process has the given features, and their derivatives there."""
        count, rank = len(generated[0]), get_dist_info()[0]
        one = draws.global_batch()[:1]
        known = Known(count * get_dist_info()[1], [], [], [])
        with full_precision(generated[0].device):
            for distance, term, *both in zip(self.distances, self.terms, generated, real, strict=True):
                of_all = [_of_all(features) for features in both]
                with torch.set_grad_enabled(term.trained):
                    value = distance(of_all[0].requires_grad_(term.trained), of_all[1], one)
                known.distances.append(value.detach().float())
                if not term.trained:
                    continue
                (slope,) = torch.autograd.grad(value, of_all[0])
                weight = term.weight
                if self.offset is not None:
                    weight = weight / (value.detach().abs() + self.offset)
                known.losses.append((weight * value.detach()).float())
                known.slopes.append((weight * slope[rank * count : (rank + 1) * count]).float())
        return known

    def _generate(self, labels: Tensor, draws: Draws, prefix: str = "") -> Tensor:
        return self.start(*self.start.draw(draws, labels, prefix=prefix))

    def _real(self, images: Tensor) -> Tensor:
        return self.start.codec.normalize(widened(images))

    def _features(self, samples: Tensor, terms: Sequence[_Term] | None = None) -> list[Tensor]:
        """(B, T, C) float32 features of (B, C, H, W) samples, of all terms or of some."""
        terms = self.terms if terms is None else terms
        images, found = None, {}
        for place in {term.encoder: None for term in terms}:
            if place is None:
                found[place] = {"global": samples.flatten(1).unsqueeze(1)}
                continue
            encoder = self.encoders[place]
            if encoder.space == "images" and images is None:
                images = self.start.codec.decode(samples)
            found[place] = encoder(images if encoder.space == "images" else samples)
        return [found[term.encoder][term.feature].float() for term in terms]


def _set_sampling(generator: Generator, section: SamplingSection) -> None:
    """Change how a generator samples.

    Raises:
        ValueError: it has no such choice, or takes more than one evaluation.
    """
    generator.set_sampling(section.steps, section.interval)
    if section.guidance is not None:
        generator.condition(torch.zeros(1, dtype=torch.int64), section.guidance)  # which says what is wrong with it
        generator.default_guidance = section.guidance
    if generator.nfe != 1:
        remedy = "sampling: {steps: 1} evaluates a generator of many steps once"
        raise ValueError(f"start: its samples take {generator.nfe} evaluations, expected 1; {remedy}")


def _of_all(features: Tensor) -> Tensor:
    """(B, ...) of this process to (N, ...) of all, without a graph."""
    if get_dist_info()[1] == 1:
        return features.detach()
    return torch.cat(all_gather(features.detach().contiguous()))
