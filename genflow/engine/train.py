"""Train a recipe: prerequisites first, then a run folder that holds the artifact."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from genflow.analysis.flops import GeneratorCost
from genflow.config.graph import ComponentGraph, Deferred
from genflow.config.recipe import load_recipe
from genflow.engine.averages import WeightAverage, swapped
from genflow.engine.checkpoint import TrainingState, set_aside_later
from genflow.engine.distributed import (
    Launcher,
    barrier,
    is_main,
    rank_and_size,
    start_process_group,
    training_device,
)
from genflow.engine.preflight import AUTO, check_model, check_prerequisite, find_resume, say
from genflow.errors import UserError
from genflow.methods.base import Method
from genflow.runs import folder as artifacts


@dataclass(frozen=True)
class TrainOptions:
    """How to run, as opposed to what.

    Args:
        work_dir: run folder; None takes ``work_dirs/<recipe>``.
        resume: ``auto`` continues from the newest checkpoint if there is one; a path from that one; None
            refuses a folder that holds a run.
        launcher: what started the processes.
    """

    work_dir: Path | None = None
    resume: str | None = None
    launcher: Launcher = "none"


def train(
    path: str | Path,
    overrides: list[str] | Mapping[str, Any] | None = None,
    seed: int | None = None,
    options: TrainOptions = TrainOptions(),
) -> Path:
    """Train the recipe in ``path``, after any missing prerequisite; returns the run folder.

    Raises:
        UserError: the recipe, the data or the run folder is not right; nothing has been written.
        TrainingDiverged: see :class:`genflow.engine.loop.TrainingDiverged`.
    """
    recipe = load_recipe(path, overrides)
    if seed is not None:
        recipe["seed"] = seed
    work_dir = options.work_dir or Path("work_dirs") / Path(path).stem
    start_process_group(options.launcher)
    _train(recipe.to_dict(), str(path), work_dir, options)
    if options.launcher != "none":  # not after an error: the others may still wait in a collective call
        torch.distributed.destroy_process_group()
    return work_dir


def _train(recipe: dict[str, Any], source: str, work_dir: Path, options: TrainOptions) -> Path:
    graph = ComponentGraph.from_recipe(recipe, source)
    for name in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if graph.recipe.arguments.get(name) is None:
            raise UserError(f"{source}: {name}: missing, training needs it")
    data = graph.section("train_dataloader")
    # All that can be wrong is told before a prerequisite trains for hours.
    cost = check_model(graph, data.dataset, data.batch_size)
    checkpoint = find_resume(work_dir, options.resume)
    runs = _train_prerequisites(recipe, graph, source, work_dir, options)

    def load_prerequisite(name: str):
        try:
            return artifacts.read_artifact(runs[name])
        except ValueError as error:
            raise UserError(f"{source}: prerequisites.{name}: {error}") from None

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(graph.settings().seed)
        try:
            method: Method = graph.build(load_prerequisite)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{source}: a prerequisite's weights do not fit its recipe: {error}") from None
    return _run(graph, method, data, work_dir, checkpoint, recipe, options, cost, runs)


def _train_prerequisites(
    recipe: dict[str, Any], graph: ComponentGraph, source: str, work_dir: Path, options: TrainOptions
) -> dict[str, Path]:
    """Train the prerequisites whose run folder holds no artifact; returns all the folders.

    Raises:
        UserError: two runs would share a folder, or an artifact was trained with another model.
    """
    runs: dict[str, Path] = {}
    for name, entry in recipe.get("prerequisites", {}).items():
        run_dir = Path(entry["run"]) if entry.get("run") else work_dir.parent / entry["name"]
        if run_dir.resolve() in {path.resolve() for path in (work_dir, *runs.values())}:
            raise UserError(f"{source}: prerequisites.{name}: its run folder {run_dir} is that of another run too")
        runs[name] = run_dir
        if artifacts.is_complete(run_dir):
            check_prerequisite(run_dir, entry["recipe"]["model"], f"{source}: prerequisites.{name}")
            say(f"prerequisite '{name}': using {run_dir}")
            continue
        say(f"prerequisite '{name}': {run_dir} holds no finished run, training {entry['name']} first")
        prerequisite = TrainOptions(run_dir, AUTO, options.launcher)
        _train(entry["recipe"], f"{source}: prerequisites.{name}.recipe", run_dir, prerequisite)
    return runs


def _run(
    graph: ComponentGraph,
    method: Method,
    data: Any,
    work_dir: Path,
    checkpoint: Path | None,
    recipe: dict[str, Any],
    options: TrainOptions,
    cost: GeneratorCost | None,
    runs: dict[str, Path],
) -> Path:
    # mmengine's runner loads slowly and imports OpenCV; a mistake in a recipe is told before that.
    from genflow.analysis.description import summarize
    from genflow.data.stream import build_loader

    try:
        from genflow.engine import hooks
        from genflow.engine.loop import AutocastOptimWrapper, TrainingDiverged
        from genflow.engine.runner import Runner
    except ImportError as error:
        hint = "on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
        raise UserError(f"mmengine's runner, which imports OpenCV, cannot be imported: {error}; {hint}") from error

    settings = graph.settings()
    optim = graph.section("optim_wrapper")
    method = method.to(training_device())
    parameters = method.trained_parameters()
    optimizer = AutocastOptimWrapper(build_optimizer(optim.optimizer, method), optim.precision, optim.clip_grad_norm)
    schedulers = []
    for scheduler in graph.section("param_scheduler") or []:
        scheduler.fill("total_iters", settings.train_cfg.max_iters)
        scheduler.fill("by_epoch", False)
        schedulers.append(scheduler(optimizer.optimizer))
    averages = {name: WeightAverage(parameters, rule) for name, rule in settings.ema.items()}
    state = TrainingState(settings.seed, method, optimizer.optimizer, schedulers, averages)
    if checkpoint is not None:
        state.restore(checkpoint)
    start = state.step
    if start > settings.train_cfg.max_iters:
        limit = settings.train_cfg.max_iters
        raise UserError(f"{checkpoint}: has done {start} updates, train_cfg.max_iters is {limit}")
    rank, size = rank_and_size()
    sharing = {"rank": rank, "world_size": size, "num_workers": data.num_workers}
    loader_from = partial(build_loader, data.dataset, data.batch_size, settings.seed, **sharing)
    _replay(method, loader_from, start)
    loader = loader_from(start)
    if is_main():
        artifacts.write_recipe(work_dir, recipe)
        for name, run_dir in runs.items():
            artifacts.keep_prerequisite(work_dir, name, run_dir)
        set_aside_later(work_dir, start)
    default_hooks = {
        "logger": hooks.ConsoleHook(interval=settings.default_hooks.logger.interval),
        "checkpoint": hooks.CheckpointHook(settings.default_hooks.checkpoint),
        "sampler_seed": None,
    }
    custom = [
        hooks.ScalarsHook(),
        hooks.AverageHook(),
        hooks.SampleGridHook(settings.default_hooks.samples),
        hooks.CostHook(f"generator: {summarize(cost)}" if cost else f"{len(parameters)} trained tensors"),
        *(graph.section("custom_hooks") or []),
    ]
    runner = Runner(
        state, work_dir, loader, settings, data.batch_size, optimizer, (default_hooks, custom), options.launcher
    )
    began = time.perf_counter()
    try:
        runner.train()
    except TrainingDiverged as error:
        kept = runner.save_training_state(runner.iter)
        barrier()  # the first process to leave ends the others, which must not meet the writer
        raise TrainingDiverged(f"{error}; the state before it: {kept}") from None
    seconds = time.perf_counter() - began
    if is_main():
        _finish(graph, runner, work_dir, seconds, cost, settings.train_cfg.max_iters - start)
    barrier()
    return work_dir


def _replay(method: Method, loader_from: Callable[[int], Iterable], start: int) -> None:
    """Show a method that resumes after ``start`` updates the batches that it wants to have seen."""
    count = min(start, method.replay)
    if count:
        batches = itertools.islice(loader_from(start - count), count)
        for batch in track(batches, "reading past samples", total=count, disable=not is_main()):
            method.observe(batch)


def build_optimizer(optimizer: Deferred, method: Method) -> torch.optim.Optimizer:
    """Give an optimizer the method's trained parameters, in the groups that its class makes if it makes any."""
    groups = getattr(optimizer.node.cls, "parameter_groups", None)
    return optimizer(list(method.trained_parameters().values()) if groups is None else groups(method))


def _finish(
    graph: ComponentGraph, runner: Any, work_dir: Path, seconds: float, cost: GeneratorCost | None, updates: int
) -> None:
    """Write the trained weights (every average), metrics and, if the recipe says how, evaluate."""
    from genflow.runs.evaluate import evaluate_run, format_report

    method, weights = runner.method.eval(), runner.method.trained_parameters()
    exported = runner.exported_average
    for name, average in runner.state.averages.items():
        if average is not exported:
            with swapped(weights, average):
                artifacts.write_artifact(work_dir, graph, method, name)
    with swapped(weights, exported):
        artifacts.write_artifact(work_dir, graph, method)
    metrics = {
        "updates": runner.max_iters,
        "images": runner.max_iters * runner.batch_size,
        "seed": runner.settings.seed,
    }
    if cost is not None:
        metrics["generator"] = {key: value for key, value in asdict(cost).items() if key != "by_component"}
    if updates:
        metrics["training"] = {
            "seconds_since_start_or_resume": round(seconds, 1),
            "updates_since_start_or_resume": updates,
            "torch": torch.__version__,
            "device": str(training_device()),
        }
    artifacts.write_metrics(work_dir, metrics)
    if graph.recipe.arguments.get("evaluation") is not None:
        try:
            report = evaluate_run(graph, work_dir, device=training_device())
            runner.logger.info("evaluation\n" + format_report(report))
        except UserError as error:  # the run itself is complete
            runner.logger.warning(f"not evaluated: {error}")
    runner.logger.info(f"finished in {seconds:.0f} s: {work_dir}")
