"""Training checkpoints: everything an update depends on.

Data order and all draws are functions of seed and update, so there is no generator or loader state to save. What a
method's feed keeps in every process (a queue of samples) is written to a file of each process beside the checkpoint.
Only files of exactly these names are a run's; what else lies there is left alone.
"""

import itertools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, get_dist_info, is_main_process

from genflow.engine.averages import WeightAverage
from genflow.engine.sharding import divided_like, kept_by_main
from genflow.errors import UserError
from genflow.methods.base import Method
from genflow.runs.folder import RunFolder
from genflow.runs.ownership import remove_partial_files
from genflow.weights import check_file, check_state, read_checkpoint, read_state, write_checkpoint

_FORMAT = 1
_PROCESS_FILE = re.compile(r"(step_[0-9]{8,})\.process_[0-9]+_of_[0-9]+")


def set_aside_later(work_dir: Path, step: int) -> None:
    """Rename checkpoints after ``step``, which a run that goes on from ``step`` abandons.

    What a kill has left is removed: half-written files, and files of processes without their checkpoint.
    """
    run = RunFolder(work_dir)
    remove_partial_files(work_dir)
    for later, path in run.checkpoints.items():
        if later > step:
            _set_aside([path, *_process_files(path)])
    for file in (work_dir / "checkpoints").glob("step_*.process_*"):
        match = _PROCESS_FILE.fullmatch(file.name)
        if match and not file.with_name(f"{match[1]}.pt").exists():
            file.unlink()


def _set_aside(files: list[Path]) -> None:
    for number in itertools.count(1):
        prefix = "abandoned_" if number == 1 else f"abandoned_{number}_"
        names = [file.with_name(f"{prefix}{file.name}") for file in files]
        if not any(name.exists() for name in names):
            break
    for file, name in zip(files, names, strict=True):
        file.rename(name)


def find_checkpoints(work_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return list(RunFolder(work_dir).checkpoints.values())


def newest_readable(work_dir: Path) -> Path | None:
    """The newest checkpoint whose files are all in order, with a word on those passed over; None if there are none.

    Raises:
        UserError: there are some, and none of them is in order; names the newest.
    """
    problems: list[UserError] = []
    for path in reversed(find_checkpoints(work_dir)):
        try:
            read_checkpoint(path)
            for file in _process_files(path):
                check_file(file)
        except UserError as error:
            problems.append(error)
            continue
        for problem in problems:
            print(f"warning: passed over: {problem}", flush=True)
        return path
    if problems:
        raise problems[0]
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint with the files of the processes."""
    for file in (path, *_process_files(path)):
        file.unlink()


def _process_files(checkpoint: Path) -> list[Path]:
    files = checkpoint.parent.glob(f"{checkpoint.stem}.process_*")
    return sorted(file for file in files if _PROCESS_FILE.fullmatch(file.name))


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
        data: fingerprint of the data set, see :meth:`genflow.data.base.Dataset.fingerprint`.
        seconds, timed_updates: how long how many of these updates took, those before a resume among them.
    """

    seed: int
    method: Method
    optimizer: torch.optim.Optimizer
    schedulers: list
    averages: Mapping[str, WeightAverage]
    step: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    timed_updates: int = 0

    def save(self, work_dir: Path) -> Path:
        """Write the checkpoint of the present step, whole however it is shared out; every process calls it."""
        path = RunFolder(work_dir).checkpoint_file(self.step)
        kept = None if self.method.feed is None else self.method.feed.state()
        if kept is not None:
            write_checkpoint(_process_file(path), kept)
            barrier()  # a checkpoint is complete when its own file is there
        shared_out = {
            "model": self.method.trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "averages": {name: average.values for name, average in self.averages.items()},
        }
        complete = kept_by_main(shared_out, is_main_process())
        if not is_main_process():
            return path
        state = {
            "format": _FORMAT,
            "step": self.step,
            "seed": self.seed,
            "data": self.data,
            "seconds": self.seconds,
            "timed_updates": self.timed_updates,
            "optimizer_type": type(self.optimizer).__name__,
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            **complete,
        }
        write_checkpoint(path, state)
        return path

    def restore(self, path: Path, allow_change: bool = False) -> None:
        """Take over a checkpoint.

        Args:
            path: the file.
            allow_change: whether seed and data set may be others.

        Raises:
            UserError: the file is damaged, or continues another recipe, seed or data set.
        """
        state = read_checkpoint(path)
        if state["format"] != _FORMAT or state["step"] < 0:
            raise UserError(f"{path}: found format {state['format']}, step {state['step']}, expected format {_FORMAT}")
        # Checkpoints of before have no fingerprint.
        trained_with = {"seed": state["seed"], **state.get("data", {})}
        for name, value in {"seed": self.seed, **self.data}.items():
            if not allow_change and trained_with.get(name, value) != value:
                remedy = "--allow-change goes on all the same"
                raise UserError(
                    f"{path}: was trained with {name} {trained_with[name]}, this run has {name} {value}; {remedy}"
                )
        try:
            self._restore(state)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path}: does not continue this recipe: {error}") from error
        if self.method.feed is not None and self.method.feed.state() is not None:
            self._restore_feed(path)
        self.step = state["step"]
        self.seconds, self.timed_updates = state.get("seconds", 0.0), state.get("timed_updates", 0)

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

    def _restore_optimizer(self, saved: dict[str, Any], steps: int) -> None:
        """Take over moments and counters; rates, decays and schedules are those of the present recipe.

        Schedules may go on from the present rate, so they are run anew up to the present update.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved["param_groups"]]:
            raise ValueError("its optimizer holds other parameters")
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {name: divided_like(value, parameters[index]) for name, value in state.items()}
            for index, state in saved["state"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # mmengine misses the optimizer's steps between
            for _ in range(steps):
                for scheduler in self.schedulers:
                    scheduler.step()

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
        self._restore_optimizer(state["optimizer"], state["step"])
        own = self.method.trained_state()
        self.method.load_trained_state({name: divided_like(value, own[name]) for name, value in state["model"].items()})
        for name, average in self.averages.items():
            average.load(state["averages"][name])
