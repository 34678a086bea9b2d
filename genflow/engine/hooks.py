"""What happens around updates: logs, averages, checkpoints, sample grids, costs."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather, all_gather_object, get_dist_info, is_main_process
from mmengine.hooks import Hook
from torch import Tensor

from genflow.config.graph import ComponentGraph
from genflow.config.sections import CheckpointSection, SamplesSection
from genflow.data.skipped import read_skipped
from genflow.engine.averages import swapped
from genflow.engine.checkpoint import find_checkpoints, remove_checkpoint
from genflow.engine.console import ConsoleHook, seconds_of_update_at_peak
from genflow.engine.memory import out_of_memory
from genflow.engine.sharding import gathered
from genflow.engine.visualizer import VisualizerHook
from genflow.errors import UserError
from genflow.generators.base import Generator
from genflow.inference.write_images import save_grid
from genflow.methods.base import Method
from genflow.processes import decided
from genflow.runs.folder import RAW, RunFolder
from genflow.runs.scalars import read_line
from genflow.weights import naming_disk, write_atomically

#: Share of the initial weights in an average from which on the log speaks of it.
_NOTABLE_SHARE = 0.01


class ScalarsHook(Hook):
    """Appends one JSON object per update to ``scalars.jsonl``: step, every term, gradient norm, rates."""

    def before_train(self, runner) -> None:
        if not is_main_process():
            return
        path = Path(runner.work_dir) / "scalars.jsonl"
        kept = _lines_until(runner.iter, path.read_bytes() if path.exists() else b"")
        write_atomically(path, lambda temporary: temporary.write_bytes(kept))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if is_main_process():
            # Schedules step at a lower priority, so this is the rate that the update used.
            rate = runner.optim_wrapper.optimizer.param_groups[0]["lr"]
            line = json.dumps({"step": batch_idx + 1, **outputs, "lr": rate})
            path = Path(runner.work_dir) / "scalars.jsonl"
            with naming_disk(path), path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _lines_until(step: int, content: bytes) -> bytes:
    """The lines of scalars.jsonl without those of later updates, which will be done again, and a torn last one.

    Lines of another kind are somebody's, and stay.
    """
    *lines, last = content.split(b"\n")
    if read_line(last) is not None:  # a kill may have cut off no more than the end of the line
        lines.append(last)
    return b"".join(line + b"\n" for line in lines if (read_line(line) or {"step": 0})["step"] <= step)


class TimeHook(Hook):
    """Adds up how long updates take, for metrics.json; the sum goes on when a run is resumed."""

    def before_train(self, runner) -> None:
        self.last = time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        now = time.perf_counter()
        runner.state.seconds += now - self.last
        runner.state.timed_updates += 1
        self.last = now


class AverageHook(Hook):
    """Updates the runner's weight averages after every optimizer update.

    Where a run is too short for an average, it says at the start and at the end what is left of the initial weights.
    """

    def before_train(self, runner) -> None:
        self._tell_initial_share(runner, "will hold", runner.max_iters)

    def after_train(self, runner) -> None:
        self._tell_initial_share(runner, "holds", runner.iter)

    def _tell_initial_share(self, runner, verb: str, updates: int) -> None:
        averages = runner.state.averages.items()
        shares = {name: average.initial_share(updates, runner.batch_size) for name, average in averages}
        notable = [f"'{name}' {verb} {share:.1%}" for name, share in shares.items() if share >= _NOTABLE_SHARE]
        if notable:
            remedy = f"a longer run or a shorter memory leaves less, and --average {RAW} samples the weights themselves"
            runner.logger.warning(
                f"of the initial weights, after {updates} updates, the average {' and '.join(notable)}; {remedy}"
            )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        weights = runner.method.trained_parameters()
        images = (batch_idx + 1) * runner.batch_size
        for average in runner.state.averages.values():
            average.update(weights, images, runner.batch_size)


class CheckpointHook(Hook):
    """Writes training checkpoints, the last one included, and removes the oldest."""

    priority = "VERY_LOW"

    def __init__(self, section: CheckpointSection):
        self.section = section

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        step = batch_idx + 1
        if step % self.section.interval and step != runner.max_iters:
            return
        runner.save_training_state(step)
        if is_main_process():
            for old in find_checkpoints(Path(runner.work_dir))[: -self.section.max_keep_ckpts]:
                remove_checkpoint(old)


class SampleGridHook(Hook):
    """Writes grids of samples, one row per class, to ``samples/``; always the same noise."""

    priority = "LOWEST"

    def __init__(self, section: SamplesSection):
        self.section = section

    def before_train(self, runner) -> None:
        # A kill may have come between a checkpoint and its grid.
        if runner.iter and not decided(self._file(runner, runner.iter).exists):
            self._draw(runner, runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._draw(runner, batch_idx + 1)

    def _file(self, runner, step: int) -> Path:
        return Path(runner.work_dir) / "samples" / f"step_{step:08d}.png"

    def _draw(self, runner, step: int) -> None:
        """Write the grid after so many updates, if one is due; the processes sample it together."""
        due = self.section.interval and step % self.section.interval == 0
        method, section = runner.method, self.section
        if method.generator is None or not (due or step == runner.max_iters):
            return
        classes = min(section.classes, method.generator.num_classes) or 1
        labels = torch.arange(classes, device=method.generator.device).repeat_interleave(section.per_class)
        method.eval()
        with swapped(method.trained_parameters(), runner.exported_average), gathered(method):
            images, problem = self._share(method.generator, labels, runner.state.seed)
        method.train()
        problem = next(filter(None, all_gather_object(problem)), None)
        if problem is not None:
            runner.logger.warning(f"no sample grid after {step} updates: {problem}")
            return
        images = torch.cat(all_gather(images))[: len(labels)]
        if is_main_process():
            save_grid(images, self._file(runner, step), columns=section.per_class)
            runner.visualizer.add_file("samples", self._file(runner, step), step)

    def _share(self, generator: Generator, labels: Tensor, seed: int) -> tuple[Tensor | None, str | None]:
        """This process's images, equally many in each, or why there are none."""
        rank, processes = get_dist_info()
        count = -(-len(labels) // processes)
        first = rank * count
        own = labels[torch.arange(first, first + count, device=labels.device).clamp(max=len(labels) - 1)]
        try:
            return generator.sample(own, seed, self.section.guidance, first), None
        except (UserError, MemoryError, RuntimeError) as error:  # samples may fail where training goes on well
            if not isinstance(error, UserError) and not out_of_memory(error):
                raise
            return None, str(error) if isinstance(error, UserError) else "out of memory; see default_hooks.samples"


class SkippedHook(Hook):
    """Tells how many files of the data were left out because they cannot be read, whenever they have doubled."""

    told = size = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        file = RunFolder(runner.work_dir).skipped_file
        size = file.stat().st_size if is_main_process() and file.exists() else 0
        if size != self.size:
            self.size = size
            self._tell(runner, 2 * self.told)

    def after_train(self, runner) -> None:
        if is_main_process():
            self._tell(runner, self.told)

    def _tell(self, runner, known: int) -> None:
        file = RunFolder(runner.work_dir).skipped_file
        count = len(read_skipped(file))
        if count > known:
            self.told = count
            runner.logger.warning(f"{count} files cannot be read, others of their classes stand in for them: {file}")


class CostHook(Hook):
    """Logs what the model that is trained costs."""

    def __init__(self, line: str):
        self.line = line

    def before_run(self, runner) -> None:
        runner.logger.info(self.line)


def build_hooks(graph: ComponentGraph, method: Method, cost: str) -> tuple[dict[str, Any], list[Hook]]:
    """The hooks of a run: mmengine's default ones by name, and the others, the recipe's own last.

    Args:
        graph: the recipe.
        method: its method.
        cost: what the log shall say that the model costs.
    """
    section, visualizer = graph.section("default_hooks"), graph.section("visualizer")
    peak_seconds = seconds_of_update_at_peak(graph, method)
    default = {
        "logger": ConsoleHook(section.logger.interval, peak_seconds),
        "checkpoint": CheckpointHook(section.checkpoint),
        "sampler_seed": None,
    }
    own = [ScalarsHook(), TimeHook(), AverageHook(), SampleGridHook(section.samples), SkippedHook(), CostHook(cost)]
    if visualizer.vis_backends:  # first: one that does not start leaves nothing behind
        own.insert(0, VisualizerHook(visualizer.interval, peak_seconds))
    return default, [*own, *graph.section("custom_hooks")]
