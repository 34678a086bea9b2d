"""One pass of BiFlow's reverse model against the exact inverse of its flow (docs/performance.md)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from genflow.analysis.description import build_on_meta
from genflow.analysis.flops import count_macs
from genflow.benchmarks.timing import Comparison, compare, facts, interleaved, matrix_rate, memory, record, synchroniser
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.config.graph import ComponentGraph
from genflow.config.imports import AllowImports
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.generators.base import Generator, Precision
from genflow.generators.flow import FlowGenerator
from genflow.generators.reverse import TwoPassGenerator
from genflow.inference.accelerate import accelerate
from genflow.methods.biflow import BiFlow
from genflow.runs.folder import open_run

_MEANING = {
    "a": "seconds per image of one pass of the reverse model, at its best batch",
    "b": "seconds per image of the exact inverse of the flow, at its best batch",
    "ratio": "b / a; low and high are the extremes over the runs",
}


@dataclass(frozen=True)
class InverseOptions:
    """How the two are timed.

    Args:
        batches: batch sizes; None for 1 and 8 on a CPU, the powers of two up to 256 on a GPU.
        repeats: timed runs of each side at each batch size.
        guidance: scale of both sides; the exact inverse runs its two branches in one batch.
        precision, compile: as in :func:`genflow.inference.accelerate.accelerate`. ``compile`` is for the one-pass side;
            the exact inverse always runs in its fastest form, on a GPU that of CUDA graphs.
        score: end the exact inverse with its score step, and one pass too where the recipe has it so.
        decoder: time decoding as well, on its own, to be added to either side.
        decode_batch: samples decoded at once.
        device: where to run.
        allow_imports: modules that the recipe may import, see :class:`~genflow.config.imports.Imports`.

    Raises:
        UserError: a number below 1.
    """

    batches: Sequence[int] | None = None
    repeats: int = 5
    guidance: float = 0.0
    precision: Precision = "float32"
    compile: bool = False
    score: bool = False
    decoder: bool = False
    decode_batch: int = 32
    device: str = "cpu"
    allow_imports: AllowImports = False

    def __post_init__(self) -> None:
        numbers = [("--repeats", self.repeats), ("--decode-batch", self.decode_batch)]
        for name, value in (*numbers, *(("--batch", batch) for batch in self.batches or ())):
            if value < 1:
                raise UserError(f"{name}: found {value}, expected at least 1")

    @property
    def batch_sizes(self) -> list[int]:
        if self.batches is not None:
            return list(self.batches)
        return [2**power for power in range(9)] if self._on_gpu else [1, 8]

    @property
    def warmup(self) -> int:
        """Untimed rounds, after the two runs for the memory; a GPU's clock and graphs want more of them."""
        return 3 if self._on_gpu else 0

    @property
    def runs(self) -> int:
        """How often ``advance`` is called."""
        return len(self.batch_sizes) * (3 + (self.repeats + self.warmup) * (3 if self.decoder else 2))

    @property
    def _on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"


def benchmark_inverse(
    subject: str,
    options: InverseOptions,
    overrides: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
    found: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> dict[str, Any]:
    """Time both ways back from the same noise and labels.

    Args:
        subject: a run folder, or a recipe, which gets random weights.
        options: how.
        overrides: ``key=value`` entries for a recipe.
        advance: called after every one of the ``options.runs`` runs.
        found: called with the entry of every batch size, once it is there.

    Returns:
        A benchmark's record (:func:`genflow.benchmarks.timing.record`), with ``batches``, one entry per batch
        size: the seconds of every run, comparison and memory, multiply-adds per second of one pass and their
        share of the measured ``matrix_rate``.

    Raises:
        UserError: no BiFlow, a wrong guidance scale, a codec that cannot decode, or samples that are not finite.
    """
    graph, method, weights = _load(subject, overrides, options.allow_imports)
    device = torch.device(options.device)
    if options.decoder:
        weights |= {"decoder": _let_decode(method.codec)}
    method.to(device)
    one_pass = accelerate(method.generator, options.precision, options.compile)
    exact = accelerate(
        FlowGenerator(method.teacher, method.codec, method.noise_std if options.score else 0.0), options.precision
    )
    macs = _macs(graph) * (2 if isinstance(one_pass, TwoPassGenerator) and options.guidance else 1)
    rate = matrix_rate(device, getattr(torch, options.precision))
    environment = facts(device)
    batches = []
    for batch in options.batch_sizes:
        entry = _time_batch(one_pass, exact, batch, options, advance)
        per_second = macs / entry["a"]
        batches.append(entry | {"macs_per_second": per_second, "share_of_matrix_rate": per_second / rate})
        found(batches[-1])
        if options.compile:  # one compiled network per batch size would soon be too many
            torch.compiler.reset()
    return record(
        "inverse",
        _best(batches),
        environment,
        meaning=_MEANING,
        subject=str(subject),
        weights=weights,
        options=asdict(options),
        macs_per_image=macs,
        matrix_rate=rate,
        batches=batches,
        with_decoder=asdict(_best([entry["with_decoder"] for entry in batches])) if options.decoder else None,
    )


def _load(
    subject: str, overrides: Sequence[str], allow_imports: AllowImports
) -> tuple[ComponentGraph, BiFlow, dict[str, str]]:
    """The recipe's graph, the method frozen in evaluation mode, and what its weights are."""
    folder = Path(subject) if Path(subject).is_dir() else None
    if folder is not None and overrides:
        raise UserError("--cfg-options: they change a recipe; a run folder has its own")
    run = None if folder is None else open_run(folder, allow_imports=allow_imports)
    graph = ComponentGraph.load(subject, overrides, allow_imports=allow_imports) if run is None else run.graph
    if not issubclass(graph.model.cls, BiFlow):
        found = graph.model.cls.__name__
        raise UserError(f"{graph.source}: model.type: found '{found}', expected a BiFlow, which has a flow to invert")
    if run is not None:
        return graph, run.method(), {"networks": "trained"}
    return graph, random_method(graph), {"networks": "random"}


def random_method(graph: ComponentGraph) -> BiFlow:
    """Build a recipe with the random weights of its seed, its flow's included.

    What training starts at zero (gates, output maps, biases) is random as well, so that no branch is idle; small,
    so that the flow's inverse of several blocks stays finite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(graph.section("seed"))
        method = graph.build(
            lambda name: graph.prerequisites[name].graph.build(for_training=False).artifact_module.state_dict(),
            for_training=False,
        )
        for network in (method.generator.network, method.teacher):
            for parameter in network.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1 * parameter.shape[-1] ** -0.5)
    return method.eval().requires_grad_(False)


def _let_decode(codec: Codec) -> str:
    """Give a codec without weights random ones; says what the weights are."""
    if codec.can_decode:
        return "the recipe's"
    codec.randomize()
    return "random, of the published architecture: for timing only"


def _macs(graph: ComponentGraph) -> int:
    """Multiply-adds of one sample through the reverse model, once."""
    network = build_on_meta(graph, for_training=False).generator.network

    def run(noise: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
        return network(noise, Condition(labels=labels, guidance=guidance))["main"]

    noise = torch.zeros(1, *network.image_shape, device="meta")
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    return count_macs(network, (noise, labels, torch.zeros(1, device="meta")), run).total


@torch.no_grad()
def _time_batch(
    one_pass: Generator, exact: FlowGenerator, batch: int, options: InverseOptions, advance: Callable[[], None]
) -> dict[str, Any]:
    """One batch size: seconds per image of every run, their comparison, and memory."""
    device = torch.device(options.device)
    positions = torch.arange(batch, device=device)
    labels = positions % max(one_pass.num_classes, 1)
    noise = Draws(0, positions).normal("sampling noise", one_pass.noise_shape)
    conditions = [generator.condition(labels, options.guidance) for generator in (one_pass, exact)]
    forward = one_pass if options.score else one_pass.evaluate
    runs = [lambda: forward(noise, conditions[0]), lambda: exact(noise, conditions[1])]

    if device.type == "cuda" and hasattr(exact.network, "capture"):
        accelerate(exact, compile=True)  # anew: the graphs of the last batch size give back their memory
    runs[0]()  # compiles
    advance()
    memories = []
    for run, name, generator in zip(runs, ("one pass", "the exact inverse"), (one_pass, exact), strict=True):
        memories.append(asdict(memory(partial(_check, run, name), [generator.network], device)))
        advance()
    if options.decoder:
        runs.append(lambda: [one_pass.codec.decode(part) for part in noise.split(options.decode_batch)])
    seconds = interleaved(runs, options.repeats, options.warmup, synchroniser(device), advance)
    a, b, *decoding = ([second / batch for second in times] for times in seconds)
    entry = {**_compared(batch, a, b), "memory_a": memories[0], "memory_b": memories[1]}
    for decoder in decoding:
        whole = [[x + y for x, y in zip(side, decoder, strict=True)] for side in (a, b)]
        entry |= {"runs_decoder": decoder, "with_decoder": _compared(batch, *whole)}
    return entry


def _check(run: Callable[[], Tensor], name: str) -> None:
    if not run().isfinite().all():
        raise UserError(f"{name} returned samples that are not finite")


def _compared(batch: int, a: list[float], b: list[float]) -> dict[str, Any]:
    return {"batch": batch, **asdict(compare(a, b)), "runs_a": a, "runs_b": b}


def _best(entries: Sequence[dict[str, Any]]) -> Comparison:
    """Each side at the batch size that is best for it; runs of different batch sizes do not pair up."""
    first, second = (min(entries, key=lambda entry: entry[side]) for side in ("a", "b"))
    if first is second:
        return Comparison(*(first[name] for name in ("a", "b", "ratio", "low", "high")))
    a, b = first["runs_a"], second["runs_b"]
    return Comparison(first["a"], second["b"], second["b"] / first["a"], min(b) / max(a), max(b) / min(a))


def inverse_table(report: dict[str, Any]) -> Table:
    """What :func:`benchmark_inverse` returned, to read."""
    weights = ", ".join(f"{name}: {what}" for name, what in report["weights"].items())
    table = Table(title=f"{report['subject']} (weights of {weights})")
    for name in ("batch", "one pass, s/image", "exact inverse, s/image", "ratio", "GMAC/s", "of matrix rate"):
        table.add_column(name, justify="right")
    for name in ("one pass, MiB", "exact inverse, MiB"):
        table.add_column(name, justify="right")
    for entry in report["batches"]:
        rate = (f"{entry['macs_per_second'] / 1e9:.4g}", f"{entry['share_of_matrix_rate']:.0%}")
        table.add_row(*_cells(entry), *rate, *(_mebibytes(entry[side]) for side in ("memory_a", "memory_b")))
        if "with_decoder" in entry:
            table.add_row(*_cells(entry["with_decoder"], ", decoded"))
    return table


def _cells(entry: dict[str, Any], note: str = "") -> list[str]:
    spreads = [_spread(entry[side], *_extremes(entry[f"runs_{side}"])) for side in ("a", "b")]
    return [f"{entry['batch']}{note}", *spreads, _spread(entry["ratio"], entry["low"], entry["high"])]


def _extremes(runs: Sequence[float]) -> tuple[float, float]:
    return min(runs), max(runs)


def _spread(median: float, low: float, high: float) -> str:
    return f"{median:.4g} ({low:.4g}..{high:.4g})"


def _mebibytes(side: dict[str, Any]) -> str:
    """Weights, and what a run takes besides."""
    working = "?" if side["working"] is None else f"{side['working'] / 2**20:.0f}"
    return f"{side['weights'] / 2**20:.0f} + {working}"
