"""Features of many images, shared among processes, and what two sets of them have to do with each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from genflow.evaluation.base import ALONE, Share
from genflow.evaluation.inception import inception_score
from genflow.evaluation.metrics import kernel_distance, precision_recall
from genflow.evaluation.moments import Gaussian, Moments
from genflow.feature_encoders.base import FeatureEncoder
from genflow.weights import write_atomically

#: Batches between two states that a killed call goes on from.
_SAVED_EVERY = 20
#: Parts of the images that Inception Score is averaged over.
_SPLITS = 10

#: (first, count) to (count, C, H, W) bytes on the extractors' device and (count,) labels.
Images = Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FeatureSet:
    """What is known of one extractor's features of a set of images.

    Args:
        gaussian: of all of them.
        kept: (K, D) float32, those of the first images; None where a file of statistics is all there is.
        logits: (N, classes) float32 of an extractor that classifies.
        accuracy: share of the images whose largest logit is that of their label.
    """

    gaussian: Gaussian
    kept: Tensor | None = None
    logits: Tensor | None = None
    accuracy: float | None = None

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
            if self.logits.shape[1] == classes and self.accuracy is not None:
                found["accuracy"] = self.accuracy
        return found


@dataclass
class _Sums:
    """What one process has of one extractor."""

    moments: Moments
    kept: dict[int, Tensor]
    logits: dict[int, Tensor]
    right: int = 0


def extract(
    extractors: Mapping[str, FeatureEncoder],
    images: Images,
    count: int,
    batch_size: int,
    kept: int,
    share: Share = ALONE,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, FeatureSet]:
    """Compute features of images, batch by batch.

    Args:
        extractors: by name.
        images: makes or reads some of them.
        count: images.
        batch_size: at once.
        kept: features to keep of the first images.
        share: which batches are this process's, and where it keeps what is done.
        progress: called with (images so far, images) of all processes, as if they went at the same pace.

    Returns:
        The sets of all processes together, by extractor, the same in each.
    """
    starts = range(0, count, batch_size)
    own = starts[share.rank :: share.size]
    sums, done = _load(share.partial)
    for number, first in enumerate(own[done:], start=done + 1):
        pixels, labels = images(first, min(batch_size, count - first))
        for name, encoder in extractors.items():
            _add(sums, name, encoder, pixels, labels, first, kept)
        if share.partial is not None and number % _SAVED_EVERY == 0:
            _save(share.partial, sums, number)
        if progress is not None:
            progress(min(number * share.size * batch_size, count), count)
    if share.size > 1:
        parts = all_gather_object({name: vars(entry) for name, entry in sums.items()})
    else:
        parts = [{name: vars(entry) for name, entry in sums.items()}]
    return {name: _joined([part[name] for part in parts if name in part], count) for name in extractors}


@torch.no_grad()
def _add(
    sums: dict[str, _Sums], name: str, encoder: FeatureEncoder, pixels: Tensor, labels: Tensor, first: int, kept: int
) -> None:
    shown = pixels.float() / 127.5 - 1
    features = encoder(shown)["pooled"].float().mean(dim=1)
    if name not in sums:
        sums[name] = _Sums(Moments.none(features.shape[1]), {}, {})
    entry = sums[name]
    entry.moments.add(features)
    if first < kept:
        entry.kept[first] = features[: kept - first].cpu()
    if encoder.num_classes:
        logits = encoder.classify(shown).float().cpu()
        entry.logits[first] = logits
        entry.right += int((logits.argmax(dim=1) == labels.cpu()).sum())


def _joined(parts: list[dict], count: int) -> FeatureSet:
    moments = Moments.none(len(parts[0]["moments"].total))
    for part in parts:
        moments.count += part["moments"].count
        moments.total += part["moments"].total
        moments.products += part["moments"].products
    kept, logits = ({first: rows for part in parts for first, rows in part[key].items()} for key in ("kept", "logits"))
    return FeatureSet(
        moments.gaussian,
        torch.cat([kept[first] for first in sorted(kept)]) if kept else None,
        torch.cat([logits[first] for first in sorted(logits)]) if logits else None,
        sum(part["right"] for part in parts) / count if logits else None,
    )


def _save(path: Path, sums: dict[str, _Sums], done: int) -> None:
    state = {
        name: {"moments": vars(entry.moments), "kept": entry.kept, "logits": entry.logits, "right": entry.right}
        for name, entry in sums.items()
    }
    write_atomically(path, lambda temporary: torch.save({"done": done, "sums": state}, temporary))


def _load(path: Path | None) -> tuple[dict[str, _Sums], int]:
    """What a killed call of the same settings left, and its number of batches; nothing where there is none."""
    if path is None or not path.is_file():
        return {}, 0
    try:
        state = torch.load(path, weights_only=True)
        sums = {
            name: _Sums(Moments(**entry["moments"]), entry["kept"], entry["logits"], entry["right"])
            for name, entry in state["sums"].items()
        }
        return sums, int(state["done"])
    except Exception:  # a damaged file costs the time that it took, and nothing else
        return {}, 0
