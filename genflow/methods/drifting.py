"""Drifting (arXiv 2602.04770): one-step generators trained by attraction and repulsion in feature space."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.data.sample_queue import QueueSection, SampleQueue
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.feature_encoders.base import FeatureEncoder
from genflow.field_estimators.base import DriftEstimator, DriftStatistics, FeatureSets
from genflow.generators.drifting import DriftingGenerator
from genflow.guidance.base import NegativeGuidance
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
        compare_samples: whether samples themselves are compared too, the feature ``global`` (spec 4.1).
        guidance: draws scales and says how many negatives there are; None trains without.
        queue: sizes of the queues, and what becomes of them on a resume.
        default_guidance: scale used for sampling when none is asked for.

    Raises:
        ValueError: parts do not fit.
    """

    frozen = ("codec", "encoders")
    training_only = ("encoders",)
    artifact = "backbone"

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
    ):
        super().__init__()
        if guidance is not None and "guidance" not in backbone.uses:
            raise ValueError(f"guidance is drawn, but the {type(backbone).__name__} is not told any")
        if samples_per_label < field.least_generated:
            raise ValueError(
                f"samples_per_label is {samples_per_label}, a {type(field).__name__} needs {field.least_generated}"
            )
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
        self.queue_section = queue or QueueSection()
        self.queue = SampleQueue(backbone.num_classes, self.queue_section)
        self._newest = -1  # the last update whose images are in the queue
        self.generator = DriftingGenerator(backbone, codec, default_guidance)
        self._statistics: Mapping[str, DriftStatistics] | None = None
        self._losses: dict[str, Tensor] = {}
        self.freeze()

    def check_batch(self, batch_size: int, processes: int) -> None:
        if not (self.encoders or self.compare_samples):
            raise UserError("model: there is nothing to compare: give encoders or set compare_samples")
        found = f"model.labels_per_update: found {self.labels_per_update}"
        if self.labels_per_update > batch_size:
            raise UserError(f"{found}, expected at most the train_dataloader.batch_size, {batch_size}")
        if self.labels_per_update % processes:
            raise UserError(f"{found}, expected a multiple of the {processes} processes")

    @property
    def replay(self) -> int:
        return self.queue_section.refill_updates if self.queue_section.resume == "refill" else 0

    def observe(self, batch: Mapping[str, Any]) -> None:
        """Push a batch of the data set to the queue, once: a run that goes on after it diverged sees one again."""
        update = int(batch["draws"].positions[0]) // batch["draws"].batch_size
        if update > self._newest:
            self._newest = update
            self.queue.push(batch["images"], batch["labels"])

    def process_state(self) -> dict[str, Tensor] | None:
        if self.queue_section.resume == "refill":
            return None
        return {**self.queue.state(), "newest_update": torch.tensor(self._newest)}

    def load_process_state(self, state: dict[str, Tensor]) -> None:
        self._newest = int(state["newest_update"])
        self.queue.load_state(state)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Push a process's images to its queue, and draw the rows of the update.

        Args:
            batch: of the data set, on the CPU.

        Returns:
            L rows, one for each of this process's share of the labels: ``images`` (L, P, C, H, W) of the class,
            ``labels`` (L,), ``draws``, and with guidance ``negatives`` (L, N, C, H, W) of any class.
        """
        self.observe(batch)
        labels, draws = batch["labels"], batch["draws"]
        rows = len(labels)
        share = self.labels_per_update * rows // draws.batch_size
        chosen = labels[draws.uniform("label choice").argsort()[:share]]
        update, rank = draws.positions[0] // draws.batch_size, draws.places[0] // rows
        positions = update * self.labels_per_update + rank * share + torch.arange(share)
        groups = Draws(draws.seed, positions, self.labels_per_update)
        prepared = {"images": self.queue.of_class(chosen, self.positives, groups), "labels": chosen, "draws": groups}
        if self.guidance is not None:
            prepared["negatives"] = self.queue.overall(self.guidance.negatives, groups)
        return prepared

    def survey(self, parts: Sequence[Mapping[str, Any]]) -> None:
        if len(parts) == 1:
            self._statistics = None
        else:
            self._statistics = self.field.survey([partial(self._compare, **part) for part in parts])

    def forward(
        self, images: Tensor, labels: Tensor, draws: Draws, negatives: Tensor | None = None, mode: str = "loss"
    ) -> dict[str, Tensor]:
        features, weights = self._compare(images, labels, draws, negatives)
        drift = self.field(features, weights, self._statistics)
        self._losses = {name: value.detach() for name, value in drift.losses.items()}
        loss = torch.stack([value.mean() for value in drift.losses.values()]).sum()
        forces = torch.stack([entry.force for entry in drift.statistics.values()]).mean(dim=0)
        scales = torch.stack([entry.scale for entry in drift.statistics.values()])
        return {
            "loss": loss,
            "drift": loss.detach() / len(drift.losses),
            "distance": scales.mean(),
            **{f"force_{value:g}": force for value, force in zip(self.field.temperatures, forces, strict=True)},
        }

    def diagnose(self) -> str:
        bad = [name for name, value in self._losses.items() if not value.isfinite().all()]
        return f"features: {', '.join(bad)}" if bad else ""

    def _compare(
        self, images: Tensor, labels: Tensor, draws: Draws, negatives: Tensor | None = None
    ) -> tuple[dict[str, FeatureSets], Tensor | None]:
        """The features of L rows, and the (L, G + N + P) weights of their samples."""
        rows, generated_count, positive_count = len(labels), self.samples_per_label, images.shape[1]
        scale = torch.ones(rows, device=labels.device) if self.guidance is None else self.guidance.draw(draws)
        generated = self._generate(labels, scale, draws)
        if negatives is None:
            negatives = images[:, :0]
        with torch.no_grad():
            real = torch.cat([part.flatten(0, 1) for part in (images, negatives)])
            real_features = self.encode(self.codec.normalize(real))
            # Autocast would hand the casts of weights that it made without a graph to the pass with one.
            torch.clear_autocast_cache()
        sets = {}
        for name, feature in self.encode(generated).items():
            positive, negative = real_features[name].tensor_split([rows * positive_count])
            sets[name] = FeatureSets(
                feature.unflatten(0, (rows, generated_count)),
                positive.unflatten(0, (rows, positive_count)),
                negative.unflatten(0, (rows, negatives.shape[1])),
            )
        if self.guidance is None:
            return sets, None
        return sets, self.guidance.weights(scale, generated_count, positive_count)

    def _generate(self, labels: Tensor, scale: Tensor, draws: Draws) -> Tensor:
        """(L * G, C, H, W) samples, those of a label together."""
        count = self.samples_per_label
        noise = draws.normal("noise", (count, *self.backbone.image_shape)).flatten(0, 1)
        condition = Condition(labels=labels.repeat_interleave(count), guidance=scale.repeat_interleave(count))
        codebooks, entries = self.backbone.style_codes
        if codebooks:
            condition = replace(condition, style=draws.integers("style", entries, (count, codebooks)).flatten(0, 1))
        return self.generator.counted(noise, condition)

    def encode(self, samples: Tensor) -> dict[str, Tensor]:
        """(B, T, C) features of (B, C, H, W) samples of the generator's space, by name."""
        features = {"global": samples.flatten(1).unsqueeze(1)} if self.compare_samples else {}
        for encoder in self.encoders:
            features |= encoder(samples if encoder.space == "samples" else self.codec.decode(samples))
        return features
