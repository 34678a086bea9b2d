"""What happens around updates: logs, averages, checkpoints, sample grids, costs."""

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook

from genflow.config.graph import ComponentGraph
from genflow.config.sections import CheckpointSection, SamplesSection
from genflow.engine.averages import swapped
from genflow.engine.checkpoint import find_checkpoints, remove_checkpoint
from genflow.errors import UserError
from genflow.inference.write_images import save_grid
from genflow.weights import write_text


class ConsoleHook(LoggerHook):
    """mmengine's console line, with its ETA, for a loop without epochs."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_inner_iters(batch_idx, self.interval) or batch_idx + 1 == runner.max_iters:
            _, line = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            runner.logger.info(line)


class ScalarsHook(Hook):
    """Appends one JSON object per update to ``scalars.jsonl``: step, every term, gradient norm, rates."""

    def before_train(self, runner) -> None:
        if not is_main_process():
            return
        path = Path(runner.work_dir) / "scalars.jsonl"
        # Updates after the resumed one, and a line that a kill cut short, will be done again.
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= runner.iter]
        write_text(path, "".join(f"{line}\n" for line in kept))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if is_main_process():
            # Schedules step at a lower priority, so this is the rate that the update used.
            rate = runner.optim_wrapper.optimizer.param_groups[0]["lr"]
            line = json.dumps({"step": batch_idx + 1, **outputs, "lr": rate})
            with (Path(runner.work_dir) / "scalars.jsonl").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            json.loads(line)
        except json.JSONDecodeError:
            break
        lines.append(line)
    return lines


class AverageHook(Hook):
    """Updates the runner's weight averages after every optimizer update."""

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

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        step = batch_idx + 1
        due = self.section.interval and step % self.section.interval == 0
        method, section = runner.method, self.section
        if not is_main_process() or method.generator is None or not (due or step == runner.max_iters):
            return
        classes = min(section.classes, method.generator.num_classes) or 1
        labels = torch.arange(classes, device=method.generator.device).repeat_interleave(section.per_class)
        method.eval()
        try:
            with swapped(method.trained_parameters(), runner.exported_average):
                images = method.generator.sample(labels, seed=runner.state.seed, guidance=section.guidance)
        except UserError as error:  # samples may overflow where training goes on well
            runner.logger.warning(f"no sample grid after {step} updates: {error}")
            return
        finally:
            method.train()
        save_grid(images, Path(runner.work_dir) / "samples" / f"step_{step:08d}.png", columns=section.per_class)


class CostHook(Hook):
    """Logs what the model that is trained costs."""

    def __init__(self, line: str):
        self.line = line

    def before_run(self, runner) -> None:
        runner.logger.info(self.line)


def build_hooks(graph: ComponentGraph, cost: str) -> tuple[dict[str, Any], list[Hook]]:
    """The hooks of a run: mmengine's default ones by name, and the others, the recipe's own last.

    Args:
        graph: the recipe.
        cost: what the log shall say that the model costs.
    """
    section = graph.section("default_hooks")
    default = {
        "logger": ConsoleHook(interval=section.logger.interval),
        "checkpoint": CheckpointHook(section.checkpoint),
        "sampler_seed": None,
    }
    own = [ScalarsHook(), AverageHook(), SampleGridHook(section.samples), CostHook(cost)]
    return default, [*own, *graph.section("custom_hooks")]
