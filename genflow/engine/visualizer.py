"""Logs besides the run folder's own: mmengine's visualizer with the backends that a recipe names (docs/logs.md)."""

import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend, TensorboardVisBackend
from numpy.typing import NDArray
from PIL import Image

from genflow.config.graph import ComponentGraph
from genflow.errors import UserError, missing_extra, reason
from genflow.processes import decided

#: What mmengine's backends import when they start, as pip calls it.
_PACKAGES = {
    "AimVisBackend": ["aim"],
    "ClearMLVisBackend": ["clearml"],
    "DVCLiveVisBackend": ["dvclive", "pygit2"],
    "MLflowVisBackend": ["mlflow"],
    "NeptuneVisBackend": ["neptune"],
    "TensorboardVisBackend": ["tensorboard"],
    "WandbVisBackend": ["wandb"],
}


def build_backends(graph: ComponentGraph, save_dir: Path) -> list[BaseVisBackend]:
    """The backends of a recipe; none of them writes, or asks its server, before :meth:`RunVisualizer.start`.

    Args:
        graph: the recipe.
        save_dir: where they keep files; it need not be there.

    Raises:
        UserError: one is named twice, refuses its arguments, or needs a package that is not installed.
    """
    backends: dict[str, BaseVisBackend] = {}
    for backend in graph.section("visualizer").vis_backends:
        name, where = backend.node.cls.__name__, f"{graph.source}: {backend.node.path}"
        if name in backends:
            raise UserError(f"{where}.type: found '{name}' once more, expected each backend once")
        for package in _PACKAGES.get(name, ()):
            if find_spec(package) is not None:
                continue
            if package == "tensorboard":
                raise UserError(f"{where}: {missing_extra(package, 'tensorboard')}")
            raise UserError(f"{where}: {name} needs the package '{package}': pip install {package}")
        backends[name] = backend(str(save_dir))
    return list(backends.values())


class RunVisualizer(Visualizer):
    """mmengine's visualizer of a training; the main process alone writes.

    It goes on without a backend that fails, for training outlives the server of its logs.
    """

    @property
    def is_on(self) -> bool:
        """Whether there is a backend."""
        return bool(self._vis_backends)

    def start(self, step: int) -> None:
        """Open the backends, to go on after ``step`` updates.

        Raises:
            UserError: one does not open; names it.
        """
        for name, backend in self._vis_backends.items():
            try:
                backend.experiment  # noqa: B018 (it opens what it returns)
            except Exception as error:  # whatever a service raises
                raise UserError(f"visualizer: {name}: does not start: {reason(error)}") from error
            if isinstance(backend, TensorboardVisBackend):
                _forget_later(backend, step)

    @master_only
    def add_image(self, name: str, image: NDArray[np.uint8], step: int = 0) -> None:
        """Log an (H, W, 3) picture of bytes, red first."""
        self._each(lambda backend: backend.add_image(name, image, step))

    @master_only
    def add_scalar(self, name: str, value: float, step: int = 0, **options: Any) -> None:
        """Log a number after ``step`` updates."""
        self._each(lambda backend: backend.add_scalar(name, value, step, **options))

    @master_only
    def add_scalars(
        self, scalar_dict: Mapping[str, float], step: int = 0, file_path: str | None = None, **options: Any
    ) -> None:
        """Log numbers after ``step`` updates."""
        self._each(lambda backend: backend.add_scalars(dict(scalar_dict), step, file_path, **options))

    def add_figures(self, group: str, figures: Mapping[str, float], step: int) -> None:
        """Log numbers of a group, and ``iter``: W&B's backend counts calls, and can take it for its axis."""
        if figures:
            self.add_scalars({f"{group}/{name}": value for name, value in figures.items()} | {"iter": step}, step)

    def add_file(self, name: str, path: Path, step: int) -> None:
        """Log a picture that lies in a file."""
        if self.is_on:
            with Image.open(path) as picture:
                self.add_image(name, np.asarray(picture.convert("RGB")), step)

    def close(self) -> None:
        """Write what is left, and close."""
        self._each(lambda backend: backend.close())

    def _each(self, call: Callable[[BaseVisBackend], None]) -> None:
        for name, backend in list(self._vis_backends.items()):
            try:
                call(backend)
            except Exception as error:  # whatever a service raises
                del self._vis_backends[name]
                print_log(
                    f"{name}: fails and gets nothing more: {reason(error)}", logger="current", level=logging.WARNING
                )


def _forget_later(backend: TensorboardVisBackend, step: int) -> None:
    """Have TensorBoard drop what a run logged after the checkpoint from which it goes on, and will log again."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    event = Event(session_log=SessionLog(status=SessionLog.START))
    backend.experiment.file_writer.add_event(event, step + 1)


class VisualizerHook(Hook):
    """Hands the scalars of updates to the visualizer, as ``scalars.jsonl`` has them, with speed and memory.

    Args:
        interval: updates between two points.
        peak_seconds: see :func:`genflow.engine.console.seconds_of_update_at_peak`.
    """

    def __init__(self, interval: int, peak_seconds: float | None):
        self.interval = interval
        self.peak_seconds = peak_seconds

    def before_train(self, runner) -> None:
        decided(lambda: runner.visualizer.start(runner.iter))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        step = batch_idx + 1
        if not is_main_process() or (step % self.interval and step not in (1, runner.max_iters)):
            return
        seconds = max(runner.message_hub.get_scalar("train/time").current(), 1e-9)
        # Schedules step at a lower priority, so this is the rate that the update used.
        rate = runner.optim_wrapper.optimizer.param_groups[0]["lr"]
        scalars = {**outputs, "lr": rate, "images_per_second": runner.batch_size / seconds}
        if self.peak_seconds is not None:
            scalars["share_of_peak"] = self.peak_seconds / seconds
        if torch.cuda.is_available():
            scalars["memory"] = torch.cuda.max_memory_allocated() / 2**20
        runner.visualizer.add_figures("train", scalars, step)
