"""Train a recipe: prerequisites first, then a run folder that holds the artifact."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import barrier, get_dist_info, is_main_process
from rich.progress import track

from genflow.analysis.description import summarize
from genflow.analysis.flops import GeneratorCost
from genflow.config.graph import ComponentGraph
from genflow.data.stream import build_loader
from genflow.engine.averages import WeightAverage, swapped
from genflow.engine.checkpoint import TrainingState, set_aside_later
from genflow.engine.distributed import Launcher, start_process_group, training_device
from genflow.engine.layers import apply_layer_settings
from genflow.engine.optimizer import build_optimizer
from genflow.engine.preflight import AUTO, Checked, check, check_prerequisite, say
from genflow.errors import UserError
from genflow.methods.base import Method
from genflow.runs.evaluate import evaluate_run, format_report
from genflow.runs.folder import Run, RunFolder
from genflow.weights import read_weights

if TYPE_CHECKING:
    from genflow.engine.runner import Runner


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
    graph = ComponentGraph.load(path, overrides, seed)
    folder = RunFolder(options.work_dir or Path("work_dirs") / Path(path).stem)
    start_process_group(options.launcher)
    _train(graph, folder, options)
    if options.launcher != "none":  # not after an error: the others may still wait in a collective call
        torch.distributed.destroy_process_group()
    return folder.path


def _train(graph: ComponentGraph, folder: RunFolder, options: TrainOptions) -> None:
    checked = check(graph, folder, options.resume)
    prerequisites = _train_prerequisites(graph, folder, options)
    method = _build_method(graph, prerequisites)
    runner = _build_runner(graph, folder, method, checked, options)
    if is_main_process():
        folder.write_recipe(graph)
        for name, run in prerequisites.items():
            folder.keep_prerequisite(name, run)
        set_aside_later(folder.path, runner.state.step)
    updates = runner.max_iters - runner.state.step
    seconds = _run(runner)
    if is_main_process():
        _finish(graph, folder, runner, checked.cost, updates, seconds)
    barrier()


def _train_prerequisites(graph: ComponentGraph, folder: RunFolder, options: TrainOptions) -> dict[str, RunFolder]:
    """Train the prerequisites whose run folder holds no artifact; returns all the folders.

    Raises:
        UserError: two runs would share a folder, or an artifact was trained with another recipe.
    """
    runs: dict[str, RunFolder] = {}
    for name, prerequisite in graph.prerequisites.items():
        run, where = RunFolder(prerequisite.folder(folder.path)), f"{graph.source}: prerequisites.{name}"
        if run.path.resolve() in {other.path.resolve() for other in (folder, *runs.values())}:
            raise UserError(f"{where}: its run folder {run} is that of another run too")
        runs[name] = run
        if run.is_complete:
            check_prerequisite(run, prerequisite.graph, where)
            say(f"prerequisite '{name}': using {run}")
            continue
        say(f"prerequisite '{name}': {run} holds no finished run, training {prerequisite.name} first")
        _train(prerequisite.graph, run, TrainOptions(run.path, AUTO, options.launcher))
    return runs


def _build_method(graph: ComponentGraph, prerequisites: Mapping[str, RunFolder]) -> Method:
    """The method with the initial weights of the recipe's seed, on the training device."""

    def load_prerequisite(name: str) -> dict[str, torch.Tensor]:
        try:
            return read_weights(prerequisites[name].weights_file())
        except ValueError as error:
            raise UserError(f"{graph.source}: prerequisites.{name}: {error}") from None

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(graph.section("seed"))
        try:
            method: Method = graph.build(load_prerequisite)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{graph.source}: a prerequisite's weights do not fit its recipe: {error}") from None
    return method.to(training_device())


def _build_runner(
    graph: ComponentGraph, folder: RunFolder, method: Method, checked: Checked, options: TrainOptions
) -> "Runner":
    """The runner at the update where training starts or goes on."""
    # mmengine's runner loads slowly and imports OpenCV; a mistake in a recipe shows before that.
    try:
        from genflow.engine import hooks
        from genflow.engine.loop import AutocastOptimWrapper
        from genflow.engine.runner import Runner
    except ImportError as error:
        hint = "on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
        raise UserError(f"mmengine's runner, which imports OpenCV, cannot be imported: {error}; {hint}") from error

    section, optim, seed = graph.section("train_cfg"), graph.section("optim_wrapper"), graph.section("seed")
    apply_layer_settings(method, section)
    optimizer = AutocastOptimWrapper(build_optimizer(optim, method), optim.precision, optim.clip_grad_norm)
    schedulers = []
    for scheduler in graph.section("param_scheduler"):
        scheduler.fill("total_iters", section.max_iters)
        scheduler.fill("by_epoch", False)
        schedulers.append(scheduler(optimizer.optimizer))
    parameters = method.trained_parameters()
    averages = {name: WeightAverage(parameters, rule) for name, rule in graph.section("ema").items()}
    state = TrainingState(seed, method, optimizer.optimizer, schedulers, averages)
    if checked.checkpoint is not None:
        state.restore(checked.checkpoint)
    if state.step > section.max_iters:
        limit = f"train_cfg.max_iters is {section.max_iters}"
        raise UserError(f"{checked.checkpoint}: has done {state.step} updates, {limit}")
    rank, size = get_dist_info()
    sharing = {"rank": rank, "world_size": size, "num_workers": checked.data.num_workers}
    loader_from = partial(build_loader, checked.data.dataset, checked.data.batch_size, seed, **sharing)
    _refill(method, loader_from, state.step)
    cost = f"generator: {summarize(checked.cost)}" if checked.cost else f"{len(parameters)} trained tensors"
    return Runner(
        state,
        folder.path,
        loader_from(state.step),
        section,
        optimizer,
        hooks.build_hooks(graph, cost),
        options.launcher,
    )


def _refill(method: Method, loader_from: Callable[[int], Iterable], start: int) -> None:
    """Push the batches of past updates that the feed of a resumed run wants to have seen."""
    count = 0 if method.feed is None else min(start, method.feed.replay)
    if count:
        batches = itertools.islice(loader_from(start - count), count)
        for batch in track(batches, "reading past samples", total=count, disable=not is_main_process()):
            method.feed.push(batch)


def _run(runner: "Runner") -> float:
    """Train; returns the seconds that it took.

    Raises:
        TrainingDiverged: after the last good state was saved.
    """
    from genflow.engine.loop import TrainingDiverged

    began = time.perf_counter()
    try:
        runner.train()
    except TrainingDiverged as error:
        kept = runner.save_training_state(runner.iter)
        barrier()  # the first process to leave ends the others, which must not meet the writer
        raise TrainingDiverged(f"{error}; the state before it: {kept}") from None
    return time.perf_counter() - began


def _finish(
    graph: ComponentGraph,
    folder: RunFolder,
    runner: "Runner",
    cost: GeneratorCost | None,
    updates: int,
    seconds: float,
) -> None:
    """Write the trained weights (every average), metrics and, if the recipe says how, evaluate."""
    method, weights = runner.method.eval(), runner.method.trained_parameters()
    exported = runner.exported_average
    for name, average in runner.state.averages.items():
        if average is not exported:
            with swapped(weights, average):
                folder.write_artifact(graph, method, name)
    with swapped(weights, exported):
        folder.write_artifact(graph, method)
    metrics: dict[str, Any] = {
        "updates": runner.max_iters,
        "images": runner.max_iters * runner.batch_size,
        "seed": runner.state.seed,
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
    folder.write_metrics(metrics)
    if graph.recipe.arguments["evaluation"] is not None:
        try:
            report = evaluate_run(Run(folder.path, graph), device=training_device())
            runner.logger.info("evaluation\n" + format_report(report))
        except UserError as error:  # the run itself is complete
            runner.logger.warning(f"not evaluated: {error}")
    runner.logger.info(f"finished in {seconds:.0f} s: {folder}")
