"""One training step of a velocity model against the plain way to compute it (docs/performance.md)."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from genflow.analysis.flops import count_macs
from genflow.benchmarks.timing import Memory, compare, facts, interleaved, matrix_rate, memory, record, synchroniser
from genflow.condition import Condition
from genflow.config.graph import ComponentGraph
from genflow.config.imports import AllowImports
from genflow.config.sections import TrainSection
from genflow.draws import Draws
from genflow.engine.layers import apply_layer_settings
from genflow.engine.optimizer import build_optimizer
from genflow.errors import UserError
from genflow.methods.mean_flow import MeanFlow

#: The plain way: one differentiation of everything with its graph, every head and every call.
PLAIN = (
    "model.field.derivative=with_graph",
    "model.field.moving_rows_only=false",
    "model.savings={guidance: false, heads: false, perceptual: false}",
)
#: A model of the same tokens that a CPU can train: a quarter of the layers at half the width.
REDUCED = (
    "model.backbone.width=384",
    "model.backbone.heads=6",
    "model.backbone.depth=4",
    "model.backbone.head_depth=2",
    "model.backbone.auxiliary_depth=2",
)
_MEANING = {
    "a": "seconds of forward and backward pass of our step",
    "b": "seconds of the same of the plain step",
    "ratio": "b / a; low and high are the extremes over the runs",
    "time_ratio": "a / b",
    "memory_ratio": "peak memory beyond weights and gradients of our step / of the plain one",
    "floor_share": "seconds that the counted multiply-adds of our step take at the measured matrix rate / a",
}


@dataclass(frozen=True)
class TrainStepOptions:
    """How the two are timed.

    Args:
        batch: rows per step.
        repeats: timed runs of each side.
        reduced: time the :data:`REDUCED` model.
        precision: of products; bfloat16 is by autocast.
        compile: compile the layers of our step.
        perceptual: keep the perceptual terms; their networks need weights.
        device: where to run.
        allow_imports: modules that the recipe may import, see :class:`~genflow.config.imports.Imports`.

    Raises:
        UserError: a number below 1.
    """

    batch: int = 8
    repeats: int = 5
    reduced: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    perceptual: bool = False
    device: str = "cpu"
    allow_imports: AllowImports = False

    def __post_init__(self) -> None:
        for name, value in (("--repeats", self.repeats), ("--batch", self.batch)):
            if value < 1:
                raise UserError(f"{name}: found {value}, expected at least 1")

    @property
    def warmup(self) -> int:
        """Untimed rounds; compiled layers and a GPU's clock want more of them."""
        return 3 if self.compile or torch.device(self.device).type == "cuda" else 1

    @property
    def runs(self) -> int:
        """How often ``advance`` is called."""
        return 2 + 2 * (self.warmup + self.repeats)


@dataclass
class _Work:
    """Rows that the backbone saw in one step, by how it was called."""

    guidance: int = 0
    moving: int = 0
    heads: set[str] = field(default_factory=set)


def benchmark_train_step(
    recipe: str,
    options: TrainStepOptions,
    overrides: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time forward and backward pass of both ways, on the same images, labels and random numbers.

    Args:
        recipe: a recipe of :class:`~genflow.methods.mean_flow.MeanFlow`.
        options: how.
        overrides: ``key=value`` entries.
        advance: called after every one of the ``options.runs`` runs.

    Returns:
        A benchmark's record with ``time_ratio``, ``memory_ratio``, ``floor_share``, multiply-adds and rows of our
        step, and the seconds of one optimizer update, which both ways share.

    Raises:
        UserError: the recipe trains something else, or the two ways differ in their loss.
    """
    device = torch.device(options.device)
    shared = ["model.perceptual=null"] * (not options.perceptual)
    overrides = [*(REDUCED if options.reduced else ()), *shared, *overrides]
    ours, optimizer, section = _build(recipe, overrides, device, options.allow_imports)
    apply_layer_settings(ours, replace(section, compile=options.compile))
    plain, _, _ = _build(recipe, [*overrides, *PLAIN], device, options.allow_imports)
    plain.load_state_dict(ours.state_dict())
    images, labels, draws = _batch(ours, options.batch, device)
    steps = [partial(_step, method, images, labels, draws, options.precision) for method in (ours, plain)]
    work = _watch(ours, steps[0])
    losses = [step().item() for step in steps]  # gradients are there from now on
    if abs(losses[0] - losses[1]) > 0.02 * abs(losses[1]):
        raise UserError(f"{recipe}: the two ways differ: losses {losses[0]} and {losses[1]}")
    memories = []
    for step in steps:
        memories.append(memory(step, [], device))
        advance()
    synchronise = synchroniser(device)
    seconds = interleaved(steps, options.repeats, options.warmup, synchronise, advance)
    comparison = compare(*seconds)
    update = statistics.median(interleaved([optimizer.step], max(3, options.repeats), 1, synchronise)[0])
    macs = _multiply_adds(plain, work, options.batch)  # the same network; compiled layers cannot be traced
    rate = matrix_rate(device, getattr(torch, options.precision))
    return record(
        "train-step",
        comparison,
        facts(device),
        meaning=_MEANING,
        recipe=recipe,
        overrides=list(overrides),
        batch=options.batch,
        precision=options.precision,
        compile=options.compile,
        time_ratio=comparison.a / comparison.b,
        memory_ratio=_ratio(memories),
        memory=[entry.working for entry in memories],
        seconds=seconds,
        losses=losses,
        rows={"batch": options.batch, "guidance": work.guidance, "moving": work.moving},
        macs=macs,
        matrix_rate=rate,
        floor_share=macs / rate / comparison.a,
        images_per_second=options.batch / comparison.a,
        optimizer_seconds=update,
    )


def _build(
    recipe: str, overrides: Sequence[str], device: torch.device, allow_imports: AllowImports
) -> tuple[MeanFlow, torch.optim.Optimizer, TrainSection]:
    """The method in training mode, none of its weights zero, so that nothing is trivial; optimizer and settings."""
    graph = ComponentGraph.load(recipe, overrides, allow_imports=allow_imports)
    if not issubclass(graph.model.cls, MeanFlow):
        raise UserError(f"{recipe}: model: found {graph.model.cls.__name__}, expected a MeanFlow")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method: MeanFlow = graph.build()
        with torch.no_grad():
            for parameter in method.backbone.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    method = method.to(device)
    return method, build_optimizer(graph.section("optim_wrapper"), method), graph.section("train_cfg")


def _batch(method: MeanFlow, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Draws]:
    draws = Draws(0, torch.arange(batch, device=device), batch)
    images = draws.uniform("images", method.image_shape) * 2 - 1
    return images, torch.arange(batch, device=device) % max(1, method.num_classes), draws


def _step(method: MeanFlow, images: Tensor, labels: Tensor, draws: Draws, precision: str) -> Tensor:
    """Forward and backward pass; gradients lie in memory that is there already."""
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss = method(images, labels, draws)["loss"]
    loss.backward()
    return loss.detach()


def _watch(method: MeanFlow, step: Callable[[], Tensor]) -> _Work:
    """Run a step and see what the backbone was asked for."""
    work, backbone = _Work(), method.backbone
    directional = type(backbone).directional

    def see(module: nn.Module, inputs: tuple, output: dict[str, Tensor]) -> None:
        if not torch.is_grad_enabled():
            work.guidance += len(inputs[0])
            work.heads |= output.keys()

    def see_direction(x: Tensor, condition: Condition, direction: Tensor, heads: Sequence[str]) -> Any:
        work.moving += len(direction)
        return directional(backbone, x, condition, direction, heads)

    handle = backbone.register_forward_hook(see)
    backbone.directional = see_direction
    try:
        step()
    finally:
        handle.remove()
        del backbone.directional
    return work


def _multiply_adds(method: MeanFlow, work: _Work, batch: int) -> int:
    """Those of one step: guidance forward, a tangent as much as its forward pass, a backward pass as two."""

    def count(heads: tuple[str, ...]) -> int:
        def run(x: Tensor, labels: Tensor) -> Tensor:
            condition = Condition.unguided(labels)
            outputs = method.field.velocity(method.backbone, x, ones, ones, condition, heads)
            return torch.cat([*outputs.values()])

        device = next(method.backbone.parameters()).device
        ones = torch.ones(1, device=device)
        inputs = (torch.zeros(1, *method.image_shape, device=device), torch.zeros(1, dtype=torch.int64, device=device))
        return count_macs(method.backbone, inputs, run).total

    guidance = work.guidance * count(tuple(sorted(work.heads)) or ("main",))
    return guidance + work.moving * count(("main",)) + 3 * batch * count(method.backbone.heads)


def _ratio(memories: Sequence[Memory]) -> float | None:
    ours, plain = (entry.working for entry in memories)
    return None if ours is None or not plain else ours / plain


def train_step_table(report: dict[str, Any]) -> Table:
    """The figures of both ways side by side."""
    table = Table(title=f"one training step, batch {report['batch']}, {report['precision']}: forward and backward")
    for title in ("", "ours", "plain", "ours / plain"):
        table.add_column(title, justify="left" if not title else "right")
    table.add_row("seconds", f"{report['a']:.4g}", f"{report['b']:.4g}", f"{report['time_ratio']:.3f}")
    sizes = ["" if size is None else f"{size / 2**20:.0f}" for size in report["memory"]]
    ratio = report["memory_ratio"]
    table.add_row("MiB beyond weights and gradients", *sizes, "" if ratio is None else f"{ratio:.3f}")
    table.add_row("images per second", f"{report['images_per_second']:.4g}", f"{report['batch'] / report['b']:.4g}", "")
    table.add_row("share of the floor of its multiply-adds", f"{report['floor_share']:.2f}", "", "")
    table.add_row("optimizer update, seconds", f"{report['optimizer_seconds']:.4g}", "the same", "")
    return table
