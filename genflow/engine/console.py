"""What a training shows while it runs: a line every so many updates, and a bar where a terminal shows it."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook, LoggerHook
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from genflow.analysis.chips import CHIPS, seconds_at_peak
from genflow.analysis.operators import NotCountedError
from genflow.config.graph import ComponentGraph
from genflow.engine.distributed import training_device
from genflow.engine.preflight import say
from genflow.engine.rehearsal import MANY_MODULES
from genflow.engine.update_cost import count_updates
from genflow.errors import UserError
from genflow.losses.base import Loss
from genflow.methods.base import Method

#: Seconds between two drawings of the bar.
_REDRAWN = 0.2


def seconds_of_update_at_peak(graph: ComponentGraph, method: Method) -> float | None:
    """Seconds in which this process's part of an update would be done at the peak rate of its GPU (data sheet).

    The multiply-adds are those of :mod:`genflow.engine.update_cost`, whose counting takes seconds.

    Args:
        graph: the recipe.
        method: its method.

    Returns:
        None on a CPU, on a GPU whose rate is not known, or where the update cannot be counted, which is said.
    """
    device = training_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name not in CHIPS or not is_main_process():
        return None
    processes = get_world_size()
    modules = sum(1 for _ in method.modules())
    try:
        if modules > MANY_MODULES:
            raise NotCountedError(f"it takes minutes for {modules} modules")
        cost = count_updates(graph, [processes], processes)[processes]
    except UserError as error:  # nothing that is trained depends on it
        cost = str(error)
    if isinstance(cost, str):
        say(f"the share of the GPU's peak rate is not shown: {cost}")
        return None
    macs = (cost.forward + cost.backward + cost.optimizer).total
    return seconds_at_peak(macs, name, graph.section("optim_wrapper").precision)


class ConsoleHook(LoggerHook):
    """mmengine's console line, with its ETA and memory, images per second and the share of the GPU's peak rate.

    The first one comes after the first update, which shows that all works.

    Args:
        interval: updates between two lines.
        peak_seconds: of :func:`seconds_of_update_at_peak`.
    """

    def __init__(self, interval: int, peak_seconds: float | None = None):
        super().__init__(interval=interval)
        self.peak_seconds = peak_seconds

    def before_train(self, runner) -> None:
        self._first = runner.iter
        if any(isinstance(module, Loss) and module.weighted for module in runner.method.modules()):
            figures = ", ".join(runner.method.progress) or "sample grids"
            runner.logger.info(f"the loss is weighted and stays near its number of terms; progress shows in: {figures}")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        due = self.every_n_inner_iters(batch_idx, self.interval) or batch_idx in (self._first, runner.max_iters - 1)
        if due:
            tags, line = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            seconds = max(tags["time"], 1e-9)
            share = "" if self.peak_seconds is None else f"  of the GPU's peak: {self.peak_seconds / seconds:.1%}"
            runner.logger.info(f"{line}  images/s: {runner.batch_size / seconds:.4g}{share}")

    def after_run(self, runner) -> None:
        """Nothing; mmengine's closes the visualizer, which gets the evaluation yet."""


class BarHook(Hook):
    """Moves a progress bar on, and draws it a few times per second."""

    priority = "LOWEST"

    def __init__(self, bar: Progress):
        self.bar = bar
        self.drawn = 0.0

    def before_train(self, runner) -> None:
        self.task = self.bar.add_task("", total=runner.max_iters, completed=runner.iter, said="")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        seconds = runner.message_hub.get_scalar("train/time").mean(50)
        said = f"{runner.batch_size / max(seconds, 1e-9):.4g} images/s  loss {outputs['loss']:.4g}"
        due = time.monotonic() - self.drawn > _REDRAWN or batch_idx + 1 == runner.max_iters
        self.bar.update(self.task, completed=batch_idx + 1, said=said, refresh=due)
        if due:
            self.drawn = time.monotonic()


@contextmanager
def progress_shown(runner) -> Iterator[None]:
    """Show a bar below the lines of the log while a runner trains, if stdout is a terminal."""
    if not (is_main_process() and sys.stdout.isatty()):
        yield
        return
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
        console=Console(markup=False, emoji=False),
        auto_refresh=False,  # by a thread, whose lock a process of the loader might be forked with
        transient=True,
        redirect_stderr=sys.stderr.isatty(),
    )
    runner.register_hook(BarHook(bar))
    terminal = sys.stdout
    handlers = [
        handler
        for handler in runner.logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is terminal
    ]
    with bar:
        for handler in handlers:
            handler.setStream(sys.stdout)  # the bar's: lines appear above it
        try:
            yield
        finally:
            for handler in handlers:
                handler.setStream(terminal)
