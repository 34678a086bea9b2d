"""Distances between distributions against direct transcriptions of their formulas, and against the generator's pass."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from genflow.benchmarks.timing import compare, facts, interleaved, memory, record, synchroniser
from genflow.config.graph import ComponentGraph
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.registry import DISTRIBUTION_DISTANCES

_MEANING = {
    "distances": "of each, a and b: seconds of value and derivative of ours and of the transcription; ratio: b / a",
    "a": "of FrechetDistance, as are b, ratio, low and high",
    "memory": "peak bytes beyond the features of ours and of the transcription",
    "value_difference": "of the two values, relative",
    "forward": "seconds of one pass of the generator for one image",
    "share": "seconds of ours / seconds of the generator's passes for the batch",
}
_TOLERANCE = 1e-3
_TEMPERATURE, _ITERATIONS, _DIRECTIONS = 0.05, 20, 256


@dataclass(frozen=True)
class DistanceOptions:
    """What is timed.

    Args:
        width: channels of the features.
        batch: generated samples, and real ones.
        repeats: timed runs of each side.
        recipe: whose generator runs beside, with random weights.
        device: where to run.

    Raises:
        UserError: a number is too small.
    """

    width: int = 768
    batch: int = 1024
    repeats: int = 3
    recipe: str = "recipes/pmf_b16_imagenet256.yaml"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("batch", 2), ("repeats", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}: found {getattr(self, name)}, expected at least {least}")

    @property
    def runs(self) -> int:
        """How often ``advance`` is called."""
        return len(_DISTANCES) * 2 * (1 + self.repeats)


def plain_frechet(x: Tensor, y: Tensor) -> Tensor:
    """Of (N, C) samples: eigenvalues of the product of both covariances, which is not symmetric."""
    first, second = torch.cov(x.double().mT), torch.cov(y.double().mT)
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=1e-30).sqrt()
    means = x.double().mean(dim=0) - y.double().mean(dim=0)
    return means.square().sum() + first.trace() + second.trace() - 2 * roots.sum()


def plain_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel between all pairs, one bandwidth after the other."""
    unit, total = 2 * y.double().var(dim=0).sum().float(), x.new_zeros(())
    for width in (0.25, 0.5, 1.0):
        of = [(torch.cdist(*pair).square() / unit / (-2 * width**2)).exp() for pair in ((x, x), (x, y), (y, y))]
        among = [(kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1)) for kernel in (of[0], of[2])]
        total = total + (among[0] - 2 * of[1].mean() + among[1]) / 3
    return total


def plain_sliced(x: Tensor, y: Tensor) -> Tensor:
    """One direction after the other."""
    directions = Draws(0, torch.zeros(1, dtype=torch.int64)).normal("directions", (x.shape[1], _DIRECTIONS))[0].to(x)
    directions = directions / directions.norm(dim=0)
    squares = [((x @ one).sort().values - (y @ one).sort().values).square().mean() for one in directions.mT]
    return torch.stack(squares).mean()


def plain_sinkhorn(x: Tensor, y: Tensor) -> Tensor:
    """Differentiated through the iterations."""
    unit = (torch.cdist(x, y).square() / 2).mean().detach()

    def transport(first: Tensor, second: Tensor) -> Tensor:
        costs = torch.cdist(first, second).square() / 2 / unit
        mass = -torch.tensor(float(len(x))).log()
        u, v = costs.new_zeros(len(x)), costs.new_zeros(len(y))
        for _ in range(_ITERATIONS):
            u = -torch.logsumexp(v - costs / _TEMPERATURE + mass, dim=1)
            v = -torch.logsumexp(u.unsqueeze(1) - costs / _TEMPERATURE + mass, dim=0)
        return _TEMPERATURE * (u.mean() + v.mean())

    return transport(x, y) - (transport(x, x) + transport(y, y)) / 2


_DISTANCES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "FrechetDistance": ({"estimator": "batch"}, plain_frechet),
    "KernelDistance": ({}, plain_kernel),
    "SlicedWasserstein": ({"directions": _DIRECTIONS}, plain_sliced),
    "SinkhornDivergence": ({"temperature": _TEMPERATURE, "iterations": _ITERATIONS}, plain_sinkhorn),
}


def benchmark_distance(options: DistanceOptions, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Time value and derivative of every distance on the same random features.

    Args:
        options: how.
        advance: called after every one of the ``options.runs`` runs.

    Raises:
        UserError: two values differ.
    """
    device = torch.device(options.device)
    forward = _forward_seconds(options, device)
    random = torch.Generator(device).manual_seed(0)
    # As features are: of a few directions mostly, so that covariances are far from round.
    shape = torch.randn(options.width, options.width, generator=random, device=device) / options.width**0.5
    samples = [torch.randn(options.batch, options.width, generator=random, device=device) @ shape for _ in range(2)]
    x, y = samples[0].requires_grad_(), samples[1] + 0.1
    distances, comparisons = {}, {}
    for name, (arguments, plain) in _DISTANCES.items():
        ours = DISTRIBUTION_DISTANCES.module_dict[name](**arguments)
        ours.begin(1, options.width)
        ours.to(device).observe(x.detach().unsqueeze(1), y.unsqueeze(1))
        one = Draws(0, torch.zeros(1, dtype=torch.int64, device=device))
        steps = [
            partial(_step, x, lambda ours=ours, one=one: ours(x.unsqueeze(1), y.unsqueeze(1), one)),
            partial(_step, x, lambda plain=plain: plain(x, y)),
        ]
        values: list[Tensor] = []
        memories = []
        for step in steps:
            keep = partial(_kept, step, values)
            memories.append(memory(keep, [], device).working)
            advance()
        difference = float((values[0] - values[1]).abs() / values[1].abs().clamp(min=1e-12))
        if not difference <= _TOLERANCE:
            raise UserError(f"{name}: found {float(values[0]):.6g}, the transcription {float(values[1]):.6g}")
        comparisons[name] = compare(*interleaved(steps, options.repeats, 0, synchroniser(device), advance))
        distances[name] = {
            **asdict(comparisons[name]),
            "memory": memories,
            "value_difference": difference,
            "share": comparisons[name].a / (forward * options.batch),
        }
    return record(
        "distance",
        comparisons["FrechetDistance"],
        facts(device),
        meaning=_MEANING,
        width=options.width,
        batch=options.batch,
        recipe=options.recipe,
        forward=forward,
        distances=distances,
    )


def _forward_seconds(options: DistanceOptions, device: torch.device) -> float:
    generator = ComponentGraph.load(options.recipe).build(for_training=False).generator.to(device)
    draws, labels = Draws(0, torch.zeros(1, dtype=torch.int64, device=device)), torch.zeros(1, dtype=torch.int64)

    @torch.no_grad()
    def once() -> Tensor:
        return generator.evaluate(*generator.draw(draws, labels.to(device)))

    return sorted(interleaved([once], options.repeats, 1, synchroniser(device))[0])[options.repeats // 2]


def _kept(step: Callable[[], Tensor], values: list[Tensor]) -> None:
    values.append(step())


def _step(x: Tensor, value: Callable[[], Tensor]) -> Tensor:
    result = value()
    torch.autograd.grad(result, x)
    return result.detach()


def distance_table(report: dict[str, Any]) -> Table:
    """The report as a table."""
    title = f"value and derivative, {report['batch']} + {report['batch']} samples of {report['width']} channels"
    table = Table(title=title)
    for column in ("", "seconds", "transcription", "ratio", "MiB", "transcription", "of the generator's passes"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in report["distances"].items():
        memories = [f"{size / 2**20:.0f}" if size is not None else "-" for size in row["memory"]]
        figures = (f"{row['a']:.3g}", f"{row['b']:.3g}", f"{1 / row['ratio']:.2f}", *memories, f"{row['share']:.2%}")
        table.add_row(name, *figures)
    return table
