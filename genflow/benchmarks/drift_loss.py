"""The drift loss of all features of a recipe against a transcription of its formulas (docs/drifting.md, D6 to D9)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor

from genflow.analysis.description import build_on_meta
from genflow.benchmarks.timing import compare, facts, interleaved, memory, record, synchroniser
from genflow.config.graph import ComponentGraph
from genflow.config.imports import AllowImports
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.field_estimators.base import FeatureSets
from genflow.methods.drifting import Drifting
from genflow.registry import FIELD_ESTIMATORS

#: What a CPU can hold and compute: the features of one label, and a workspace that stays in its share of memory.
REDUCED = ("model.labels_per_update=1", "model.field.memory_mib=128")
#: Settings of the field that is transcribed.
_TRANSCRIBED = {
    "normalization": "both",
    "attraction": 1,
    "repulsion": 1,
    "kernel": "laplace",
    "self_term": "published",
    "bias_correction": False,
    "annealing": None,
    "normalize_distances": True,
    "normalize_forces": True,
}
_MEANING = {
    "a": "seconds of loss and gradient with respect to the features of our field",
    "b": "seconds of the same of the transcription, feature by feature",
    "ratio": "b / a; low and high are the extremes over the runs",
    "time_ratio": "a / b",
    "memory_ratio": "peak memory beyond the features, their gradient included, of our field / of the transcription",
    "gradient_difference": "largest difference of an entry of the two gradients / largest entry, over the features",
}
#: Largest ``gradient_difference`` that counts as equal; bfloat16 gradients have eight bits.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


@dataclass(frozen=True)
class DriftLossOptions:
    """How the two are timed.

    Args:
        repeats: timed runs of each side.
        reduced: the :data:`REDUCED` recipe.
        precision: of the features, as the encoders would return them; None for that of the recipe's training. Both
            ways compute in float32.
        device: where to run.
        allow_imports: modules that the recipe may import, see :class:`~genflow.config.imports.Imports`.

    Raises:
        UserError: a number below 1.
    """

    repeats: int = 5
    reduced: bool = False
    precision: Literal["float32", "bfloat16"] | None = None
    device: str = "cpu"
    allow_imports: AllowImports = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"--repeats: found {self.repeats}, expected at least 1")

    @property
    def warmup(self) -> int:
        """Untimed rounds, after the one that compares gradients and memory; a GPU's clock wants more of them."""
        return 3 if torch.device(self.device).type == "cuda" else 0

    @property
    def runs(self) -> int:
        """How often ``advance`` is called."""
        return 2 + 2 * (self.warmup + self.repeats)


def benchmark_drift_loss(
    recipe: str,
    options: DriftLossOptions,
    overrides: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time loss and gradient of both ways on the same random features, of the shapes that the recipe's encoders give.

    Args:
        recipe: a recipe of :class:`~genflow.methods.drifting.Drifting` with a ``DriftingField``.
        options: how.
        overrides: ``key=value`` entries.
        advance: called after every one of the ``options.runs`` runs.

    Returns:
        A benchmark's record with ``time_ratio``, ``memory_ratio``, ``gradient_difference``, the losses and sizes.

    Raises:
        UserError: the recipe trains something else, its field is another, or the two gradients differ.
    """
    device = torch.device(options.device)
    overrides = [*(REDUCED if options.reduced else ()), *overrides]
    graph = ComponentGraph.load(recipe, overrides, allow_imports=options.allow_imports)
    method = _on_meta(graph, recipe)
    field = method.field
    training = graph.section("optim_wrapper")
    precision = options.precision or (training.precision if training else "float32")
    features = random_features(method, getattr(torch, precision), device)
    weights = _weights(method, device)

    def ours() -> Tensor:
        return torch.stack([losses.mean() for losses in field(features, weights).losses.values()]).sum()

    def plain() -> Tensor:
        return sum(plain_loss(sets, weights, field.temperatures, field.floor) for sets in features.values())

    steps = [partial(_step, features, way) for way in (ours, plain)]
    losses, gradients, memories = [], [], []
    for step in steps:
        _forget(features)
        memories.append(memory(lambda step=step: losses.append(step().item()), [], device).working)
        gradients.append({name: sets.generated.grad for name, sets in features.items()})
        advance()
    difference = max(_difference(*(gradient[name] for gradient in gradients)) for name in features)
    if not difference <= _TOLERANCE[precision]:
        raise UserError(f"{recipe}: the two gradients differ by {difference:.2g} of the largest entry")
    gradients.clear()
    seconds = interleaved(steps, options.repeats, options.warmup, synchroniser(device), advance)
    comparison = compare(*seconds)
    generated, positive, negative = (
        sum(getattr(sets, name).numel() for sets in features.values()) for name in ("generated", "positive", "negative")
    )
    return record(
        "drift-loss",
        comparison,
        facts(device),
        meaning=_MEANING,
        recipe=recipe,
        overrides=overrides,
        precision=precision,
        labels=method.labels_per_update,
        samples={"generated": method.samples_per_label, "positive": method.positives, "negative": _negatives(method)},
        features=len(features),
        values=generated + positive + negative,
        time_ratio=comparison.a / comparison.b,
        memory_ratio=None if None in memories else memories[0] / memories[1],
        memory=memories,
        gradient_bytes=generated * torch.finfo(getattr(torch, precision)).bits // 8,
        gradient_difference=difference,
        losses=losses,
        seconds=seconds,
    )


def _on_meta(graph: ComponentGraph, recipe: str) -> Drifting:
    if not issubclass(graph.model.cls, Drifting):
        raise UserError(f"{recipe}: model: found {graph.model.cls.__name__}, expected a Drifting")
    method = build_on_meta(graph)
    plain = isinstance(method.field, FIELD_ESTIMATORS.module_dict["DriftingField"])
    if not plain or any(getattr(method.field, name) != value for name, value in _TRANSCRIBED.items()):
        raise UserError(f"{recipe}: model.field: expected a DriftingField as published, for that is transcribed")
    return method


def random_features(method: Drifting, dtype: torch.dtype, device: torch.device) -> dict[str, FeatureSets]:
    """Features of an update: uniform numbers, the positive ones shifted, in the shapes and strides of the encoders."""
    generator = torch.Generator(device).manual_seed(0)
    labels = method.labels_per_update
    sets: dict[str, dict[str, Tensor]] = {}
    counts = {"generated": method.samples_per_label, "positive": method.positives, "negative": _negatives(method)}
    for part, count in counts.items():
        samples = torch.empty(labels * count, *method.codec.latent_shape, device="meta")
        for name, like in method.encode(samples).items():
            values = torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=device)
            values.uniform_(*((0.0, 2.0) if part == "positive" else (-1.0, 1.0)), generator=generator)
            sets.setdefault(name, {})[part] = values.unflatten(0, (labels, count))
    return {
        name: FeatureSets(**{**parts, "generated": parts["generated"].requires_grad_()}) for name, parts in sets.items()
    }


def _negatives(method: Drifting) -> int:
    return 0 if method.guidance is None else method.guidance.negatives


def _weights(method: Drifting, device: torch.device) -> Tensor | None:
    """(L, G + N + P), those of the guidance scales of an update."""
    if method.guidance is None:
        return None
    scale = method.guidance.draw(Draws(0, torch.arange(method.labels_per_update, device=device)))
    return method.guidance.weights(scale, method.samples_per_label, method.positives)


def plain_loss(sets: FeatureSets, weights: Tensor | None, temperatures: Sequence[float], floor: float) -> Tensor:
    """The mean loss of one feature, its positions reshaped to groups, line by line as in docs/drifting.md, D6 to D9."""
    labels, positions = sets.generated.shape[0], sets.generated.shape[2]
    generated, positive, negative = (
        part.transpose(1, 2).flatten(0, 1).float() for part in (sets.generated, sets.positive, sets.negative)
    )
    count, others, channels = generated.shape[1], generated.shape[1] + negative.shape[1], generated.shape[2]
    if weights is None:
        weights = generated.new_ones(labels, others + positive.shape[1])
    weights = weights.repeat_interleave(positions, dim=0).unsqueeze(1)
    with torch.no_grad():
        targets = torch.cat([generated, negative, positive], dim=1)
        squares = generated.square().sum(-1).unsqueeze(2) + targets.square().sum(-1).unsqueeze(1)
        distances = (squares - 2 * generated @ targets.mT).clamp(min=1e-8).sqrt()
        scale = (distances * weights).mean() / weights.mean()
        unit = (scale / channels**0.5).clamp(min=1e-3)
        points, targets = generated / unit, targets / unit
        distances = distances / scale.clamp(min=1e-3)
        distances[:, :, :count] += 100 * torch.eye(count, device=distances.device)
        drift = torch.zeros_like(points)
        for temperature in temperatures:
            logits = -distances / temperature
            affinity = (logits.softmax(dim=2) * logits.softmax(dim=1)).clamp(min=floor**2).sqrt() * weights
            repelling, attracting = affinity[:, :, :others], affinity[:, :, others:]
            coefficients = torch.cat(
                [-repelling * attracting.sum(2, keepdim=True), attracting * repelling.sum(2, keepdim=True)], dim=2
            )
            force = coefficients @ targets - coefficients.sum(2, keepdim=True) * points
            drift += force / force.square().mean().clamp(min=1e-8).sqrt()
        goal = points + drift
    return (generated / unit - goal).square().mean()


def _step(features: Mapping[str, FeatureSets], loss: Callable[[], Tensor]) -> Tensor:
    _forget(features)
    value = loss()
    value.backward()
    return value.detach()


def _forget(features: Mapping[str, FeatureSets]) -> None:
    """Let go of the gradients."""
    for sets in features.values():
        sets.generated.grad = None


def _difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def drift_loss_table(report: dict[str, Any]) -> Table:
    """The figures of both ways side by side."""
    samples = " + ".join(str(count) for count in report["samples"].values())
    table = Table(
        title=f"drift loss of {report['features']} features, {report['labels']} labels of {samples} samples, "
        f"{report['values'] / 1e6:.4g} M values in {report['precision']}"
    )
    for title in ("", "ours", "formulas, line by line", "ours / formulas"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("seconds", f"{report['a']:.4g}", f"{report['b']:.4g}", f"{report['time_ratio']:.3f}")
    sizes = ["" if size is None else f"{size / 2**20:.0f}" for size in report["memory"]]
    ratio = report["memory_ratio"]
    gradient = f"{report['gradient_bytes'] / 2**20:.0f}"
    title = f"MiB beyond the features, {gradient} of the gradient included"
    table.add_row(title, *sizes, "" if ratio is None else f"{ratio:.3f}")
    table.add_row("loss", *(f"{loss:.6g}" for loss in report["losses"]), "")
    table.add_row("largest difference of gradients / largest entry", "", "", f"{report['gradient_difference']:.1g}")
    return table
