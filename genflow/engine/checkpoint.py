"""Training checkpoints: everything an update depends on.

Data order and all draws are functions of seed and update, so there is no generator or loader state to save. What a
method's feed keeps in every process (a queue of samples) is written to a file of each process beside the checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, get_dist_info, is_main_process

from genflow.engine.averages import WeightAverage
from genflow.errors import UserError
from genflow.methods.base import Method
from genflow.weights import check_state, read_checkpoint, read_state, write_checkpoint

_FORMAT = 1


def checkpoint_path(work_dir: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` updates lies."""
    return work_dir / "checkpoints" / f"step_{step:08d}.pt"


def set_aside_later(work_dir: Path, step: int) -> None:
    """Rename checkpoints after ``step``, which a run that goes on from ``step`` abandons; drop half-written ones."""
    for path in (work_dir / "checkpoints").glob(".*.partial"):
        path.unlink()
    for path in find_checkpoints(work_dir):
        if int(path.stem.removeprefix("step_")) > step:
            for file in (*_process_files(path), path):
                file.rename(file.with_name(f"abandoned_{file.name}"))


def find_checkpoints(work_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((work_dir / "checkpoints").glob("step_*.pt"))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint with the files of the processes."""
    for file in (path, *_process_files(path)):
        file.unlink()


def _process_files(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.parent.glob(f"{checkpoint.stem}.process_*"))


def _process_file(checkpoint: Path) -> Path:
    rank, size = get_dist_info()
    return checkpoint.with_name(f"{checkpoint.stem}.process_{rank}_of_{size}")


@dataclass
class TrainingState:
    """What a checkpoint saves and restores.

    Args:
        seed: the run's seed.
        method: its trained weights and buffers, on the device where they train.
        optimizer: over the method's trained parameters.
        schedulers: mmengine parameter schedulers.
        averages: weight averages by name.
        step: updates done.
    """

    seed: int
    method: Method
    optimizer: torch.optim.Optimizer
    schedulers: list
    averages: Mapping[str, WeightAverage]
    step: int = 0

    def save(self, work_dir: Path) -> Path:
        """Write the checkpoint of the present step; every process calls it."""
        path = checkpoint_path(work_dir, self.step)
        kept = None if self.method.feed is None else self.method.feed.state()
        if kept is not None:
            write_checkpoint(_process_file(path), kept)
            barrier()  # a checkpoint is complete when its own file is there
        if not is_main_process():
            return path
        state = {
            "format": _FORMAT,
            "step": self.step,
            "seed": self.seed,
            "model": self.method.trained_state(),
            "optimizer_type": type(self.optimizer).__name__,
            "optimizer": self.optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "averages": {name: average.values for name, average in self.averages.items()},
        }
        write_checkpoint(path, state)
        return path

    def restore(self, path: Path) -> None:
        """Take over a checkpoint.

        Raises:
            UserError: the file is damaged, or continues another recipe or seed.
        """
        state = read_checkpoint(path)
        if state["format"] != _FORMAT or state["step"] < 0:
            raise UserError(f"{path}: found format {state['format']}, step {state['step']}, expected format {_FORMAT}")
        if state["seed"] != self.seed:
            raise UserError(f"{path}: was trained with seed {state['seed']}, this run has seed {self.seed}")
        try:
            self._restore(state)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path}: does not continue this recipe: {error}") from error
        if self.method.feed is not None and self.method.feed.state() is not None:
            self._restore_feed(path)
        self.step = state["step"]

    def _restore_feed(self, checkpoint: Path) -> None:
        path, found = _process_file(checkpoint), _process_files(checkpoint)
        if found and path not in found:
            saved = found[0].name.rpartition("_")[2]
            raise UserError(f"{checkpoint}: was saved by {saved} process(es), this run has {get_dist_info()[1]}")
        try:
            self.method.feed.load_state(read_state(path))
        except (ValueError, KeyError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{path}: does not continue this recipe: {problem}") from error

    def _restore_optimizer(self, saved: dict[str, Any], schedulers: list[dict[str, Any]]) -> None:
        """Take over moments and counters; rates, decays and schedules are those of the present recipe."""
        groups = self.optimizer.state_dict()["param_groups"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved["param_groups"]]:
            raise ValueError("its optimizer holds other parameters")
        if schedulers:  # some go on from the present rate
            for group, old in zip(groups, saved["param_groups"], strict=True):
                group["lr"] = old["lr"]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        for scheduler, counters in zip(self.schedulers, schedulers, strict=True):
            scheduler.load_state_dict({name: counters[name] for name in ("last_step", "_global_step", "_last_value")})

    def _restore(self, state: dict[str, Any]) -> None:
        check_state(self.method.trained_state(), state["model"])
        if state.get("optimizer_type") != type(self.optimizer).__name__:
            raise ValueError(f"its optimizer is {state.get('optimizer_type')}, not {type(self.optimizer).__name__}")
        if len(state["schedulers"]) != len(self.schedulers):
            raise ValueError(f"it has {len(state['schedulers'])} parameter schedulers, not {len(self.schedulers)}")
        if state["averages"].keys() != self.averages.keys():
            raise ValueError(f"its averages are {sorted(state['averages'])}, not {sorted(self.averages)}")
        for name, average in self.averages.items():
            check_state(average.values, state["averages"][name])
        self._restore_optimizer(state["optimizer"], state["schedulers"])
        self.method.load_trained_state(state["model"])
        for name, average in self.averages.items():
            average.load(state["averages"][name])
