"""Train a recipe: prerequisites first, then a run folder that holds the artifact."""

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import barrier, get_dist_info, is_main_process
from rich.progress import track

from genflow.analysis.description import figures, summarize
from genflow.analysis.flops import GeneratorCost
from genflow.config.graph import ComponentGraph
from genflow.config.imports import Imports
from genflow.config.recipe import load_recipe
from genflow.data.stream import build_loader
from genflow.engine.averages import WeightAverage, swapped
from genflow.engine.checkpoint import TrainingState, set_aside_later
from genflow.engine.distributed import Launcher, find_launcher, start_process_group, training_device
from genflow.engine.fine_tuning import start_from
from genflow.engine.layers import apply_layer_settings
from genflow.engine.lock import working_in
from genflow.engine.optimizer import build_optimizer
from genflow.engine.prefetch import micro_batches_of, rows_of
from genflow.engine.preflight import AUTO, Checked, check, check_prerequisite, check_untrained, find_resume, say
from genflow.engine.resume import given_file, kept_prerequisites, resumed_recipe, run_of, write_given
from genflow.engine.schedule import build_schedulers
from genflow.engine.sharding import kept_by_main, share_out
from genflow.engine.signals import TrainingStopped, stop_requests
from genflow.errors import RepeatedError, UserError, opencv_missing
from genflow.methods.base import Method
from genflow.processes import agreed, decided
from genflow.runs.evaluate import Setting, format_report, measure
from genflow.runs.folder import RAW, Run, RunFolder
from genflow.weights import read_weights

if TYPE_CHECKING:
    from genflow.engine.loop import AutocastOptimWrapper
    from genflow.engine.runner import Runner


@dataclass(frozen=True)
class TrainOptions:
    """How to run, as opposed to what.

    Args:
        work_dir: run folder; None takes ``work_dirs/<recipe>``.
        resume: ``auto`` continues from the newest checkpoint if there is one; a path from that one; None
            refuses a folder that holds a run.
        launcher: what started the processes; ``auto`` finds out.
        allow_change: whether a resumed run may change what it cannot change and go on exactly.
    """

    work_dir: Path | None = None
    resume: str | None = None
    launcher: Launcher = "auto"
    allow_change: bool = False


def train(
    path: str | Path,
    overrides: list[str] | Mapping[str, Any] | None = None,
    seed: int | None = None,
    options: TrainOptions = TrainOptions(),
) -> Path:
    """Train the recipe in ``path``, after any missing prerequisite; returns the run folder.

    A resumed run goes on with its own recipe, over which is laid what changed in ``path`` since it was started, and
    what is given now.

    Raises:
        UserError: the recipe, the data or the run folder is not right; nothing has been written.
        TrainingDiverged: see :class:`genflow.engine.loop.TrainingDiverged`.
        TrainingStopped: see :class:`genflow.engine.signals.TrainingStopped`.
    """
    launcher = find_launcher(options.launcher)
    options = replace(options, launcher=launcher)
    folder = RunFolder(options.work_dir or Path("work_dirs") / Path(path).stem)
    start_process_group(launcher)
    try:
        given, graph = _load(path, overrides, seed, folder, options)
        with working_in(folder):
            _train(graph, folder, options, given)
    except (RepeatedError, TrainingStopped):
        _leave(launcher)
        raise
    _leave(launcher)  # not after another error: the others may still wait in a collective call
    return folder.path


def _leave(launcher: Launcher) -> None:
    if launcher != "none" and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _load(
    path: str | Path,
    overrides: list[str] | Mapping[str, Any] | None,
    seed: int | None,
    folder: RunFolder,
    options: TrainOptions,
) -> tuple[dict[str, Any], ComponentGraph]:
    """The recipe file as it is, and the recipe that is trained."""

    def resumed_run() -> RunFolder | None:
        folder.check_own()
        if options.resume is None:
            return None
        if not folder.recipe_file.is_file() and options.resume != AUTO:
            return run_of(Path(options.resume))
        return folder if folder.recipe_file.is_file() else None

    run = decided(resumed_run)
    if run is None:
        return agreed(lambda: (load_recipe(path), ComponentGraph.load(path, overrides, seed, Imports.own(path))))

    def imports(given: Mapping[str, Any]) -> Imports:
        return Imports.resumed(path, given, overrides or {})

    def resumed() -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        given = load_recipe(path)
        imports(given).take(given, str(path))  # its own components say which overrides are text
        return given, *resumed_recipe(run, given, overrides or {}, seed, options.allow_change)

    given, recipe, lines = decided(resumed)
    for line in lines:
        say(f"resume: {line}")
    return given, agreed(lambda: ComponentGraph.from_recipe(recipe, str(path), imports(given)))


def _train(graph: ComponentGraph, folder: RunFolder, options: TrainOptions, given: Mapping[str, Any]) -> None:
    checked = agreed(lambda: check(graph))
    checkpoint = decided(lambda: find_resume(folder, options.resume))
    for note in checked.data.dataset.notes:
        say(f"data: {note}")
    kept = decided(lambda: kept_prerequisites(graph, checkpoint, options.allow_change))
    runs = _train_prerequisites(graph, folder, options, kept)
    method = _build_method(graph, kept | {name: run.weights_file() for name, run in runs.items()})
    if checkpoint is None and graph.section("init_from") is not None:
        for line in agreed(lambda: _start_from(graph, method)):
            say(line)
    runner = _build_runner(graph, folder, method, checked, checkpoint, options)
    if is_main_process():
        set_aside_later(folder.path, runner.state.step)  # first: it may make room on a full disk
        folder.write_recipe(graph)
        if runner.state.step == 0 or not given_file(folder).exists():
            write_given(folder, given)
        if checked.data.dataset.class_names:
            folder.write_metrics({"class_names": list(checked.data.dataset.class_names)})
        for name, file in kept.items():
            folder.keep_prerequisite(name, file)
        for name, run in runs.items():
            folder.keep_prerequisite(name, run.weights_file())
    with contextlib.closing(runner.visualizer):
        seconds = _run(runner)
        _finish(graph, folder, runner, checked.cost)
        barrier()
        evaluated = _evaluate(Run(folder.path, graph), runner.logger.info)
        runner.visualizer.add_figures("evaluation", evaluated, runner.max_iters)
    runner.logger.info(f"finished in {seconds:.0f} s: {folder}")


def _train_prerequisites(
    graph: ComponentGraph, folder: RunFolder, options: TrainOptions, kept: Collection[str] = ()
) -> dict[str, RunFolder]:
    """Train the prerequisites whose run folder holds no artifact; returns the folders of all but ``kept``.

    Raises:
        UserError: two runs would share a folder, or an artifact was trained with another recipe.
    """
    agreed(lambda: check_untrained(graph, folder, kept))
    runs: dict[str, RunFolder] = {}
    for name, prerequisite in graph.prerequisites.items():
        if name in kept:
            say(f"prerequisite '{name}': using the weights that the run keeps")
            continue
        run, where = RunFolder(prerequisite.folder(folder.path)), f"{graph.source}: prerequisites.{name}"
        if run.path.resolve() in {other.path.resolve() for other in (folder, *runs.values())}:
            raise UserError(f"{where}: its run folder {run} is that of another run too")
        runs[name] = run
        if not decided(lambda run=run: run.is_complete):
            # Two runs may need it at once: the second one finds it finished.
            with working_in(run, wait=True):
                if not decided(lambda run=run: run.is_complete):
                    say(f"prerequisite '{name}': {run} holds no finished run, training {prerequisite.name} first")
                    own = replace(options, work_dir=run.path, resume=AUTO, allow_change=False)
                    _train(prerequisite.graph, run, own, prerequisite.graph.plain)
                    continue
        decided(lambda run=run, own=prerequisite.graph, where=where: check_prerequisite(run, own, where))
        say(f"prerequisite '{name}': using {run}")
        finished = Run(run.path, prerequisite.graph)
        if decided(lambda finished=finished: _lacks_evaluation(finished)):
            _evaluate(finished, say)
    return runs


def _build_method(graph: ComponentGraph, prerequisites: Mapping[str, Path]) -> Method:
    """The method with the initial weights of the recipe's seed, and those of files, on the training device."""

    def load_prerequisite(name: str) -> dict[str, torch.Tensor]:
        try:
            return read_weights(prerequisites[name])
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


def _start_from(graph: ComponentGraph, method: Method) -> list[str]:
    try:
        return start_from(method, graph.section("init_from"))
    except UserError as error:
        raise UserError(f"{graph.source}: init_from: {error}") from None


def _build_runner(
    graph: ComponentGraph,
    folder: RunFolder,
    method: Method,
    checked: Checked,
    checkpoint: Path | None,
    options: TrainOptions,
) -> "Runner":
    """The runner at the update where training starts or goes on."""
    # mmengine's runner loads slowly and imports OpenCV; a mistake in a recipe shows before that.
    try:
        from genflow.engine import hooks
        from genflow.engine.loop import AutocastOptimWrapper
        from genflow.engine.runner import Runner
        from genflow.engine.visualizer import build_backends
    except ImportError as error:
        raise opencv_missing("mmengine's runner, which trains", error) from error

    section, optim, seed = graph.section("train_cfg"), graph.section("optim_wrapper"), graph.section("seed")
    apply_layer_settings(method, section)
    if section.sharding is not None and get_dist_info()[1] > 1:
        agreed(lambda: share_out(method, section.sharding, training_device()))
    optimizer = AutocastOptimWrapper(build_optimizer(optim, method), optim.precision, optim.clip_grad_norm)
    schedulers = build_schedulers(graph, optimizer.optimizer)
    parameters = method.trained_parameters()
    averages = {name: WeightAverage(parameters, rule) for name, rule in graph.section("ema").items()}
    checked.data.dataset.skipped_file = folder.skipped_file
    data = checked.data.dataset.fingerprint()
    state = TrainingState(seed, method, optimizer.optimizer, schedulers, averages, data=data)
    if checkpoint is not None:
        state.restore(checkpoint, options.allow_change)
    if state.step > section.max_iters:
        limit = f"train_cfg.max_iters is {section.max_iters}"
        raise UserError(f"{checkpoint}: has done {state.step} updates, {limit}")
    rank, size = get_dist_info()
    sharing = {"rank": rank, "world_size": size, "num_workers": checked.data.num_workers}
    sharing["stored"] = None if method.feed is None else method.feed.stored
    loader_from = partial(build_loader, checked.data.dataset, checked.data.batch_size, seed, **sharing)
    _refill(method, loader_from, state.step)
    if state.step == 0:
        _observe(method, loader_from(0), checked.data.batch_size, section.micro_batches, optimizer)
    cost = f"generator: {summarize(checked.cost)}" if checked.cost else f"{len(parameters)} trained tensors"
    return Runner(
        state,
        folder.path,
        loader_from(state.step),
        section,
        optimizer,
        hooks.build_hooks(graph, method, cost),
        build_backends(graph, folder.visualizer_folder),
        options.launcher,
    )


def _refill(method: Method, loader_from: Callable[[int], Iterable], start: int) -> None:
    """Push the batches of past updates that the feed of a resumed run wants to have seen."""
    count = 0 if method.feed is None else min(start, method.feed.replay)
    if count:
        batches = itertools.islice(loader_from(start - count), count)
        for batch in track(batches, "reading past samples", total=count, disable=not is_main_process()):
            method.feed.push(batch)


def _observe(
    method: Method, loader: Iterable, batch_size: int, micro_batches: int, optimizer: "AutocastOptimWrapper"
) -> None:
    """Show the method the first samples of the stream, as many as it wants to see before the first update."""
    count = math.ceil(method.start_samples / batch_size)
    if not count:
        return
    device = training_device()
    batches = itertools.islice(loader, count)
    for batch in track(batches, "statistics of the start", total=count, disable=not is_main_process()):
        for part in micro_batches_of(rows_of(batch, method, device), micro_batches):
            with optimizer.optim_context(method):
                method.observe(**part)


def _run(runner: "Runner") -> float:
    """Train; returns the seconds that it took.

    Raises:
        TrainingDiverged, TrainingStopped: after the last good state was saved.
    """
    from genflow.engine.console import progress_shown
    from genflow.engine.loop import TrainingDiverged

    began = time.perf_counter()
    try:
        with stop_requests(runner.stop), runner.watchdog, progress_shown(runner):
            runner.train()
    except TrainingDiverged as error:
        raise TrainingDiverged(f"training stopped at {error}; the state before it: {_save(runner)}") from None
    except SystemExit as error:
        raise UserError(f"a component ended the program after update {runner.iter}, with {error.code!r}") from error
    except TrainingStopped as error:
        kept = f"stopped by {signal.Signals(error.number).name} after update {runner.iter}: {_save(runner)}"
        raise TrainingStopped(error.number, kept) from None
    return time.perf_counter() - began


def _save(runner: "Runner") -> Path:
    """Save the present state, in all processes."""
    kept = runner.save_training_state(runner.iter)
    barrier()  # the first process to leave ends the others, which must not meet the writer
    return kept


def _finish(
    graph: ComponentGraph,
    folder: RunFolder,
    runner: "Runner",
    cost: GeneratorCost | str | None,
) -> None:
    """Write metrics and the trained weights, every average, and as they are; every process calls it."""
    metrics: dict[str, Any] = {
        "updates": runner.max_iters,
        "images": runner.max_iters * runner.batch_size,
        "seed": runner.state.seed,
    }
    if cost is not None:
        metrics["generator"] = figures(cost)
    if runner.state.timed_updates:  # checkpoints of before have no times
        metrics["training"] = {
            "seconds": round(runner.state.seconds, 3),
            "updates": runner.state.timed_updates,
            "torch": torch.__version__,
            "device": str(training_device()),
        }
    if is_main_process():
        folder.write_metrics(metrics)
    # The exported weights come last: with them the run is complete.
    method, weights, exported = runner.method.eval(), runner.method.trained_parameters(), runner.exported_average
    every = {**runner.state.averages, RAW: None}
    others = {name: average for name, average in every.items() if average is not exported}
    for name, average in {**others, None: exported}.items():
        with swapped(weights, average):
            state = kept_by_main(method.artifact_module.state_dict(), is_main_process())
            if is_main_process():
                folder.write_artifact(graph, state, name)


def _evaluate(run: Run, tell: Callable[[str], None]) -> dict[str, float]:
    """Evaluate a run if its recipe says how; it is complete without. Long evaluations are shared by the processes.

    Returns:
        its figures, in the main process; empty without.
    """
    found: dict[str, float] = {}
    if run.graph.recipe.arguments["evaluation"] is None:
        return found
    try:
        evaluator = agreed(run.evaluator)
        shared = not evaluator.holds_images
        if shared or is_main_process():
            report = measure(run, evaluator, Setting(), training_device(), shared=shared)
            tell("evaluation\n" + format_report(report))
            found = report["model"]
    except UserError as error:
        tell(f"not evaluated: {error}")
    barrier()
    return found


def _lacks_evaluation(run: Run) -> bool:
    """Whether the training of a prerequisite ended before its own recipe's evaluation did."""
    own = load_recipe(run.recipe_file).get("evaluation")
    return bool(run.checkpoints) and "evaluation" not in run.metrics and own == run.graph.plain.get("evaluation")
