"""Features of many images, shared among processes, and what two sets of them have to do with each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from genflow.evaluation.base import ALONE, Share
from genflow.evaluation.inception import inception_score
from genflow.evaluation.metrics import kernel_distance, precision_recall
from genflow.evaluation.moments import Gaussian, Moments
from genflow.evaluation.resampling import draw_again
from genflow.feature_encoders.base import FeatureEncoder
from genflow.processes import agreed
from genflow.weights import write_atomically

#: Batches between two states that a killed call goes on from.
_SAVED_EVERY = 20
#: Parts of the images that Inception Score is averaged over.
_SPLITS = 10
#: Which features are kept; a part of the images in their order would be a part of the classes.
_SEED_OF_KEPT = 0

#: (first, count) to (count, C, H, W) bytes on the extractors' device and (count,) labels.
Images = Callable[[int, int], tuple[Tensor, Tensor]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureSet:
    """What is known of one extractor's features of a set of images.

    Args:
        gaussian: of all of them.
        labels: (N,) int64 of all images; None where a file of statistics is all there is, as below.
        kept: (K, D) float32, those of some images, drawn.
        kept_labels: (K,) int64 of these.
        logits: (N, classes) float32 of an extractor that classifies.
    """

    gaussian: Gaussian
    labels: Tensor | None = None
    kept: Tensor | None = None
    kept_labels: Tensor | None = None
    logits: Tensor | None = None

    def figures(self, reference: "FeatureSet", neighbours: int, classes: int) -> dict[str, float]:
        """The figures of this set beside a reference.

        Args:
            reference: of the same extractor.
            neighbours: of precision and recall.
            classes: of the images; accuracy is left out where the extractor has others.
        """
        found = {"fd": self.gaussian.distance(reference.gaussian)}
        if self.kept is not None and reference.kept is not None:
            ours, theirs = self.kept.numpy(), reference.kept.numpy()
            found["kernel_distance"] = kernel_distance(theirs, ours)[0]
            if min(len(ours), len(theirs)) > neighbours:
                found["precision"], found["recall"] = precision_recall(theirs, ours, neighbours)
        if self.logits is not None:
            if len(self.logits) >= _SPLITS:
                found["inception_score"] = inception_score(self.logits.numpy(), _SPLITS)[0]
            if self.logits.shape[1] == classes:
                found["accuracy"] = float((self.logits.argmax(dim=1) == self.labels).float().mean())
        return found

    def distance_error(self, reference: "FeatureSet", repeats: int, draws: torch.Generator, by_label: bool) -> float:
        """Standard deviation of the Fréchet distance over as many images drawn again, with replacement, from the kept.

        Args:
            reference: of the same extractor.
            repeats: draws.
            draws: random numbers.
            by_label: each label as often as it is there, as where labels are not drawn.
        """
        labels, kept = (self.labels, self.kept_labels) if by_label else (self.labels * 0, self.kept_labels * 0)
        distances = []
        for _ in range(repeats):
            times = draw_again(kept, labels, draws).bincount(minlength=len(kept)).double()
            moments = Moments.none(self.kept.shape[1])
            moments.add(self.kept, times)
            distances.append(moments.gaussian.distance(reference.gaussian))
        return float(torch.tensor(distances, dtype=torch.float64).std())


@dataclass
class _Sums:
    """What one process has of one extractor; rows by the first image of their batch."""

    moments: Moments
    labels: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
    kept_labels: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)


def extract(
    extractors: Mapping[str, FeatureEncoder],
    images: Images,
    count: int,
    batch_size: int,
    kept: int,
    share: Share = ALONE,
    progress: Progress | None = None,
) -> dict[str, FeatureSet]:
    """Compute features of images, batch by batch.

    Args:
        extractors: by name.
        images: makes or reads some of them.
        count: images.
        batch_size: at once.
        kept: features to keep.
        share: which batches are this process's, and where it keeps what is done.
        progress: called with (images so far, images) of all processes, as if they went at the same pace.

    Returns:
        The sets of all processes together, by extractor, the same in each.

    Raises:
        UserError: ``images`` or an extractor raised it, in any process.
    """
    chosen = torch.zeros(count, dtype=torch.bool)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED_OF_KEPT))
    chosen[order[:kept]] = True

    def own() -> dict[str, _Sums]:
        sums, done = _load(share.partial)
        starts = range(0, count, batch_size)[share.rank :: share.size]
        for number, first in enumerate(starts[done:], start=done + 1):
            pixels, labels = images(first, min(batch_size, count - first))
            for name, encoder in extractors.items():
                _add(sums, name, encoder, pixels, labels.cpu(), first, chosen[first : first + len(labels)])
            if share.partial is not None and number % _SAVED_EVERY == 0:
                _save(share.partial, sums, number)
            if progress is not None:
                progress(min(number * share.size * batch_size, count), count)
        return sums

    parts = all_gather_object(agreed(own)) if share.size > 1 else [own()]
    return {name: _joined([part[name] for part in parts if name in part]) for name in extractors}


@torch.no_grad()
def _add(
    sums: dict[str, _Sums],
    name: str,
    encoder: FeatureEncoder,
    pixels: Tensor,
    labels: Tensor,
    first: int,
    chosen: Tensor,
) -> None:
    encoded, logits = encoder.encode_and_classify(pixels.float() / 127.5 - 1)
    features = encoded["pooled"].float().mean(dim=1)
    entry = sums.setdefault(name, _Sums(Moments.none(features.shape[1])))
    entry.moments.add(features)
    entry.labels[first] = labels
    entry.kept[first], entry.kept_labels[first] = features.cpu()[chosen], labels[chosen]
    if logits is not None:
        entry.logits[first] = logits.float().cpu()


def _joined(parts: list[_Sums]) -> FeatureSet:
    moments = Moments.none(len(parts[0].moments.total))
    for part in parts:
        moments.count += part.moments.count
        moments.total += part.moments.total
        moments.products += part.moments.products

    def rows(name: str) -> Tensor | None:
        found = {first: value for part in parts for first, value in getattr(part, name).items()}
        return torch.cat([found[first] for first in sorted(found)]) if found else None

    return FeatureSet(moments.gaussian, *map(rows, ("labels", "kept", "kept_labels", "logits")))


def _save(path: Path, sums: dict[str, _Sums], done: int) -> None:
    entries = {name: {**vars(entry), "moments": vars(entry.moments)} for name, entry in sums.items()}
    state = {"done": done, "sums": entries}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def _load(path: Path | None) -> tuple[dict[str, _Sums], int]:
    """What a killed call of the same settings left, and its number of batches; nothing where there is none."""
    if path is None or not path.is_file():
        return {}, 0
    try:
        state = torch.load(path, weights_only=True)
        sums = {
            name: _Sums(**{**entry, "moments": Moments(**entry["moments"])}) for name, entry in state["sums"].items()
        }
        return sums, int(state["done"])
    except Exception:  # a damaged file costs the time that it took, and nothing else
        return {}, 0
