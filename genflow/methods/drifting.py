"""Drifting (arXiv 2602.04770): one-step generators trained by attraction and repulsion in feature space."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.data.queue_feed import QueueFeed
from genflow.data.sample_queue import QueueSection, widened
from genflow.draws import Draws
from genflow.feature_encoders.base import FeatureEncoder
from genflow.field_estimators.base import Drift, DriftEstimator, DriftStatistics, FeatureSets
from genflow.generators.drifting import DriftingGenerator
from genflow.guidance.base import NegativeGuidance
from genflow.layers.precision import without_graph
from genflow.methods.base import Method
from genflow.ranges import Positive
from genflow.registry import METHODS


@METHODS.register_module()
class Drifting(Method):
    """Move generated samples along a field in the features of frozen encoders, and let the generator follow.

    An update takes ``labels_per_update`` labels from the newest images. Each has ``samples_per_label`` generated
    samples, ``positives`` real ones of its class and the guidance's negatives of any class, both from the queue;
    together they are a row of a batch. Micro-batches divide rows, and are exact: the field's statistics are taken
    over all of them first, by two passes without gradient.

    Args:
        backbone: the generator's network.
        field: the drift.
        codec: the space of the generator.
        labels_per_update: labels, over all processes.
        samples_per_label: generated samples of each, G.
        positives: real samples of each, P.
        encoders: what samples are compared in, beside the samples themselves; their feature names differ.
        compare_samples: whether samples themselves are compared too, the feature ``global`` (docs/drifting.md, D10).
        guidance: draws scales and says how many negatives there are; None trains without.
        queue: sizes of the queues, and what becomes of them on a resume.
        default_guidance: scale used for sampling when none is asked for.
        keep_real_features: with micro-batches, from the passes for statistics on; otherwise they are computed three
            times, which takes less memory.
        diagnostics: whether training also logs ``coverage`` and, by temperatures, ``neighbours_0.2`` and others: see
            :class:`~genflow.field_estimators.base.Neighbours`.

    Raises:
        ValueError: parts do not fit.
    """

    frozen = ("codec", "encoders")
    training_only = ("encoders", "compare_samples")
    artifact = "backbone"
    progress = ("drift",)

    def __init__(
        self,
        backbone: Backbone,
        field: DriftEstimator,
        codec: Codec,
        labels_per_update: Positive,
        samples_per_label: Positive = 64,
        positives: Positive = 64,
        encoders: Sequence[FeatureEncoder] = (),
        compare_samples: bool = True,
        guidance: NegativeGuidance | None = None,
        queue: QueueSection | None = None,
        default_guidance: float = 1.0,
        keep_real_features: bool = True,
        diagnostics: bool = False,
    ):
        super().__init__()
        if guidance is not None and "guidance" not in backbone.uses:
            raise ValueError(f"guidance is drawn, but the {type(backbone).__name__} does not take any")
        if guidance is not None and guidance.min_scale < 1 and not field.takes_attracting_negatives:
            raise ValueError(
                f"guidance has min_scale {guidance.min_scale}: below 1 negatives attract, which a "
                f"{type(field).__name__} has no notion of"
            )
        if samples_per_label < field.least_generated:
            raise ValueError(
                f"samples_per_label is {samples_per_label}, a {type(field).__name__} needs {field.least_generated}"
            )
        if not (encoders or compare_samples):
            raise ValueError("there is nothing to compare: give encoders or set compare_samples")
        names = ["global"] if compare_samples else []
        names += [name for encoder in encoders for name in encoder.feature_names]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two encoders have a feature '{name}'")
        self.backbone = backbone
        self.field = field
        self.codec = codec
        self.labels_per_update = labels_per_update
        self.samples_per_label = samples_per_label
        self.positives = positives
        self.encoders = nn.ModuleList(encoders)
        self.compare_samples = compare_samples
        self.guidance = guidance
        self.keep_real_features = keep_real_features
        self.diagnostics = diagnostics
        negatives = 0 if guidance is None else guidance.negatives
        self.feed = QueueFeed(queue or QueueSection(), backbone.num_classes, labels_per_update, positives, negatives)
        lowest = 1.0 if guidance is None else min(1.0, guidance.min_scale)
        self.generator = DriftingGenerator(backbone, codec, default_guidance, lowest)
        self.generator.highest_guidance = 1.0 if guidance is None else guidance.highest_scale
        self.freeze()

    def memory(self, parts: int) -> dict[str, int]:
        """The queue, the samples of an update, and features and distances of those of one part of it."""
        section = self.feed.section
        sample = math.prod(self.image_shape)
        stored = sample * getattr(torch, section.storage).itemsize
        negatives = 0 if self.guidance is None else self.guidance.negatives
        with without_graph():
            features = self.encode(torch.zeros(2, *self.image_shape, device=next(self.backbone.parameters()).device))
        labels = -(-self.labels_per_update // parts)
        row = 4 * labels * sum(feature[0].numel() for feature in features.values())
        groups = {
            "positives": self.positives,
            "samples_per_label": self.samples_per_label,
            "guidance.negatives": negatives,
        }
        points = self.samples_per_label * 4  # each has a distance to all points
        return {
            "queue.per_class": section.per_class * max(1, self.num_classes) * stored,
            "queue.overall": section.overall * stored,
            **{name: count * (self.labels_per_update * sample * 4 + row + points) for name, count in groups.items()},
        }

    def prepare(self, parts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Adds the means over all micro-batches by which their drift is normalised; one alone finds its own."""
        if len(parts) == 1:
            return list(parts)
        kept = list(parts)
        if self.keep_real_features:
            kept = [{**part, "real": self._encode_real(part["images"], part.get("negatives"))} for part in parts]
        statistics = self.field.batch_statistics([partial(self._compare, **part) for part in kept])
        return [{**part, "statistics": statistics} for part in kept]

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        draws: Draws,
        negatives: Tensor | None = None,
        real: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, DriftStatistics] | None = None,
    ) -> dict[str, Tensor]:
        """As in the contract, for L rows of the feed.

        Args:
            images: (L, P, C, H, W) positives of every label, as the queue stores them.
            labels: (L,).
            draws: of the rows.
            negatives: (L, N, C, H, W) likewise; None without guidance.
            real, statistics: of :meth:`prepare`.
        """
        features, weights = self._compare(images, labels, draws, negatives, real)
        drift = self.field(features, weights, statistics)
        loss = torch.stack([value.mean() for value in drift.losses.values()]).sum()
        forces = torch.stack([entry.force for entry in drift.statistics.values()]).mean(dim=0)
        scales = torch.stack([entry.scale for entry in drift.statistics.values()])
        terms = {}
        if self.diagnostics:
            found = self.field.neighbours(features, drift.statistics)
            terms["coverage"] = found.coverage
            terms |= self._by_temperature("neighbours", found.effective)
        return {
            "loss": loss,
            "drift": loss.detach() / len(drift.losses),
            "distance": scales.mean(),
            **self._by_temperature("force", forces),
            **terms,
        }

    def _by_temperature(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """Terms of (R,) values."""
        return {f"{name}_{key:g}": value for key, value in zip(self.field.temperatures, values, strict=True)}

    def diagnose(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """The features whose losses are not finite, computed once more."""
        bad: dict[str, None] = {}
        with without_graph():
            for part in parts:
                losses = self._drift(**part).losses
                bad |= {name: None for name, value in losses.items() if not value.isfinite().all()}
        return f"features: {', '.join(bad)}" if bad else ""

    def _drift(self, statistics: Mapping[str, DriftStatistics] | None = None, **rows: Any) -> Drift:
        return self.field(*self._compare(**rows), statistics)

    def _compare(
        self,
        images: Tensor,
        labels: Tensor,
        draws: Draws,
        negatives: Tensor | None = None,
        real: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, FeatureSets], Tensor | None]:
        """The features of L rows, and the (L, G + N + P) weights of their samples."""
        rows, generated_count, positive_count = len(labels), self.samples_per_label, images.shape[1]
        scale = torch.ones(rows, device=labels.device) if self.guidance is None else self.guidance.draw(draws)
        generated = self._generate(labels, scale, draws)
        real = self._encode_real(images, negatives) if real is None else real
        negative_count = 0 if negatives is None else negatives.shape[1]
        sets = {}
        for name, feature in self.encode(generated).items():
            positive, negative = real[name].tensor_split([rows * positive_count])
            sets[name] = FeatureSets(
                feature.unflatten(0, (rows, generated_count)),
                positive.unflatten(0, (rows, positive_count)),
                negative.unflatten(0, (rows, negative_count)),
            )
        if self.guidance is None:
            return sets, None
        return sets, self.guidance.weights(scale, generated_count, positive_count)

    @without_graph()
    def _encode_real(self, images: Tensor, negatives: Tensor | None) -> dict[str, Tensor]:
        """Features of all positives, and then of all negatives."""
        samples = [part.flatten(0, 1) for part in (images, negatives) if part is not None]
        return self.encode(self.codec.normalize(widened(torch.cat(samples))))

    def _generate(self, labels: Tensor, scale: Tensor, draws: Draws) -> Tensor:
        """(L * G, C, H, W) samples, those of a label together."""
        each = (values.repeat_interleave(self.samples_per_label) for values in (labels, scale))
        return self.generator.evaluate(*self.generator.draw(draws, *each, prefix=""))

    def encode(self, samples: Tensor) -> dict[str, Tensor]:
        """(B, T, C) features of (B, C, H, W) samples of the generator's space, by name."""
        features = {"global": samples.flatten(1).unsqueeze(1)} if self.compare_samples else {}
        for encoder in self.encoders:
            features |= encoder(samples if encoder.space == "samples" else self.codec.decode(samples))
        return features
