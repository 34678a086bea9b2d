"""Fréchet and kernel distances, Inception Score, precision and recall of any generator, by any extractors."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.errors import UserError, reason
from genflow.evaluation.base import ALONE, Evaluator, Share
from genflow.evaluation.conventions import CONVENTIONS
from genflow.evaluation.extraction import FeatureSet, Progress, extract
from genflow.evaluation.statistics import check_facts, encoder_digest, facts_of, read_statistics, real_pictures
from genflow.feature_encoders.base import FeatureEncoder
from genflow.generators.base import Generator
from genflow.ranges import Length, LocalPath, PlainName, Positive, Range
from genflow.registry import EVALUATORS

Extractors = Annotated[dict[PlainName, FeatureEncoder], Length()]
#: Neighbours of precision and recall.
_NEIGHBOURS = 3
#: Images of published figures.
_PUBLISHED = 50_000


@EVALUATORS.register_module()
class GenerationEvaluator(Evaluator):
    """Figures in the ``pooled`` features of extractors, by a published convention.

    For every extractor: ``fd``, the Fréchet distance from the reference (FID, if the extractor is ``Inception``), and
    where the reference's pictures are given ``kernel_distance`` (KID), ``precision`` and ``recall`` (k = 3); of one
    that classifies ``inception_score``, and ``accuracy`` where its classes are the generator's. With ``validation``
    ``fdr``: the mean over extractors of FD(generated, reference) / FD(validation, reference), which does not saturate
    as single distances do. With several extractors, names end in that of theirs.

    Features are computed in float32, where the size of a batch may change the last digits; sums over them are in
    float64, so that neither their order nor the number of processes changes a figure.

    Args:
        extractors: by names of your own; a prerequisite's artifact will do (``$classifier``).
        reference: pictures to compare with, the training set as a rule.
        statistics: files of mean and covariance by extractor, in the place of ``reference``, or beside it.
        validation: real pictures that were not trained on; they give the figures of real data, too.
        num_samples: images to generate.
        convention: how images become bytes and which labels they have, see
            :data:`~genflow.evaluation.conventions.CONVENTIONS`.
        batch_size: images generated at a time.
        kept_features: of each set, for precision, recall, kernel distances and error bars, which take features one by
            one; drawn where there are more.

    Raises:
        ValueError: an extractor has nothing to be compared with, or the convention takes its labels from validation
            pictures and there are none.
    """

    holds_images = False
    has_error_bars = True

    def __init__(
        self,
        extractors: Extractors,
        reference: Dataset | None = None,
        statistics: dict[PlainName, LocalPath] | None = None,
        validation: Dataset | None = None,
        num_samples: Annotated[int, Range(low=2, high=10_000_000)] = 50_000,
        convention: Literal["adm", "torch_fidelity", "jax", "drifting"] = "torch_fidelity",
        batch_size: Positive = 250,
        kept_features: Annotated[int, Range(low=_NEIGHBOURS + 1, high=100_000)] = 10_000,
    ):
        self.extractors = extractors
        self.datasets = {"reference": reference, "validation": validation}
        self.statistics = statistics or {}
        self.num_samples = num_samples
        self.convention = CONVENTIONS[convention]
        self.batch_size = batch_size
        self.kept_features = kept_features
        self._reference: dict[str, FeatureSet] = {}
        self._validation: dict[str, FeatureSet] = {}
        self._generated: dict[str, FeatureSet] = {}
        self._real: dict[int, dict[str, float]] = {}  # what reference returns, by its argument
        for name in self.statistics:
            if name not in extractors:
                raise ValueError(f"statistics.{name}: there is no such extractor, expected {', '.join(extractors)}")
        missing = [name for name in extractors if name not in self.statistics]
        if missing and reference is None:
            raise ValueError(f"extractor {missing[0]!r} has nothing to compare with: give reference or statistics")
        if self.convention.labels == "validation" and validation is None:
            raise ValueError(f"the convention {convention} takes its labels from validation pictures: give validation")

    def check(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        for role, dataset in self.datasets.items():
            if dataset is None:
                continue
            if tuple(dataset.image_shape) != tuple(image_shape):
                found = f"{role} has images of shape {tuple(dataset.image_shape)}, the generator {tuple(image_shape)}"
                raise UserError(f"GenerationEvaluator: {found}")
            gives_labels = role == "validation" and self.convention.labels == "validation"
            if num_classes and dataset.num_classes not in ((num_classes,) if gives_labels else (0, num_classes)):
                found = f"{role} has {dataset.num_classes} classes, the generator {num_classes}"
                raise UserError(f"GenerationEvaluator: {found}")
        for name, encoder in self.extractors.items():
            where = f"GenerationEvaluator: extractor {name!r}"
            if "pooled" not in encoder.feature_names:
                known = ", ".join(encoder.feature_names[:4])
                raise UserError(f"{where}: a {type(encoder).__name__} has no 'pooled' features, but {known}")
            tensors = [*encoder.parameters(), *encoder.buffers()]
            encoder.require_trained(f"{where}, a {type(encoder).__name__}")
            image = torch.zeros(1, *image_shape, device=tensors[0].device if tensors else "cpu")
            try:
                with torch.no_grad():
                    width = encoder(image)["pooled"].shape[-1]
            except UserError:
                raise
            except Exception as error:  # whatever a network raises over images of another form
                raise UserError(f"{where} cannot take images of shape {tuple(image_shape)}: {reason(error)}") from None
            if name in self.statistics:
                read_statistics(self.statistics[name], width)

    def evaluate(
        self,
        generator: Generator,
        seed: int = 0,
        guidance: float | Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        share: Share = ALONE,
    ) -> dict[str, float]:
        """As :meth:`Evaluator.evaluate`; the processes of ``share`` divide the batches, and all get all figures.

        Raises:
            UserError: as :meth:`check`, or an extractor has no weights.
        """
        shape = tuple(generator.codec.decode(torch.zeros(1, *generator.noise_shape, device=device)).shape[1:])
        seen = self._prepare(device, generator.num_classes, shape, share, progress)
        validation = next((entry.labels for entry in self._validation.values()), None)
        labels = self.convention.choose_labels(self.num_samples, generator.num_classes, seed, validation)

        def images(first: int, count: int) -> tuple[Tensor, Tensor]:
            part = labels[first : first + count]
            return self.convention.to_bytes(generator.sample(part.to(device), seed, guidance, first)), part

        told = _counted(progress, seen, seen + self.num_samples)
        self._generated = extract(
            self.extractors, images, self.num_samples, self.batch_size, self.kept_features, share, told
        )
        figures = self._figures(self._generated, generator.num_classes)
        real = self.reference(generator.num_classes)
        names = [self._title("fd", name) for name in self._validation]
        if names and all(real[name] > 0 for name in names):  # 0: the validation pictures are the reference itself
            figures["fdr"] = sum(figures[name] / real[name] for name in names) / len(names)
        return figures

    def reference(self, num_classes: int = 0) -> dict[str, float]:
        """The figures of the validation pictures, after :meth:`evaluate`; empty without them."""
        if num_classes not in self._real:
            real = self._figures(self._validation, num_classes)
            self._real[num_classes] = {**real, "fdr": 1.0} if real else {}
        return dict(self._real[num_classes])

    def facts(self) -> dict[str, Any]:
        """What the figures depend on beside the generator, and what they may be compared with."""
        return {**self._facts, "beside": self._beside()}

    @cached_property
    def _facts(self) -> dict[str, Any]:  # once for a sweep: hashing a large extractor takes seconds
        return {
            "convention": self.convention.name,
            "extractors": {name: encoder_digest(encoder)[:16] for name, encoder in self.extractors.items()},
            "statistics": {name: read_statistics(path).sha256[:16] for name, path in self.statistics.items()},
        }

    def bootstrap(self, repeats: int, seed: int = 0) -> dict[str, float]:
        """Standard deviations of the ``fd`` of the last :meth:`evaluate`, see :meth:`FeatureSet.distance_error`.

        Args:
            repeats: draws.
            seed: of the draws.
        """
        draws, by_label = torch.Generator().manual_seed(seed), self.convention.labels != "uniform"
        return {
            self._title("fd", name): generated.distance_error(self._reference[name], repeats, draws, by_label)
            for name, generated in self._generated.items()
        }

    def _beside(self) -> str:
        resizes = {encoder.description.get("resize") for encoder in self.extractors.values()}
        if self.convention.inception not in resizes:
            return "none: no extractor is the Inception network with this convention's resize"
        if not self.statistics:
            return f"none: the convention's reference is {self.convention.reference}"
        if self.num_samples < _PUBLISHED:
            return f"none: of {self.num_samples:,} images, published figures are of {_PUBLISHED:,}"
        return self.convention.beside

    def _prepare(
        self,
        device: torch.device | str,
        classes: int,
        image_shape: tuple[int, int, int],
        share: Share,
        progress: Progress | None,
    ) -> int:
        """Read or compute, once, what is compared with; returns the number of pictures that were looked at."""
        for encoder in self.extractors.values():
            encoder.to(device).eval()
        if self._reference:
            return 0
        self.check(classes, image_shape)
        statistics = {name: read_statistics(path) for name, path in self.statistics.items()}
        for name, found in statistics.items():
            check_facts(found, self.statistics[name], facts_of(self.extractors[name], self.convention, image_shape))
        sets: dict[str, dict[str, FeatureSet]] = {"reference": {}, "validation": {}}
        given = {role: dataset for role, dataset in self.datasets.items() if dataset is not None}
        before, total = 0, sum(map(len, given.values())) + self.num_samples
        for role, dataset in given.items():
            told = _counted(progress, before, total)
            pictures = real_pictures(dataset, self.convention, device)
            options = (self.batch_size, self.kept_features, replace(share, partial=None), told)
            sets[role] = extract(self.extractors, pictures, len(dataset), *options)
            before += len(dataset)
        for name, found in statistics.items():
            entry = sets["reference"].get(name, FeatureSet(found.gaussian))
            sets["reference"][name] = replace(entry, gaussian=found.gaussian)
        self._validation, self._reference = sets["validation"], sets["reference"]
        return before

    def _figures(self, sets: dict[str, FeatureSet], num_classes: int) -> dict[str, float]:
        return {
            self._title(figure, name): value
            for name, entry in sets.items()
            for figure, value in entry.figures(self._reference[name], _NEIGHBOURS, num_classes).items()
        }

    def _title(self, figure: str, extractor: str) -> str:
        return figure if len(self.extractors) == 1 else f"{figure} {extractor}"


def _counted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """A progress of images that come after others."""
    return None if progress is None else lambda done, _: progress(before + done, total)
