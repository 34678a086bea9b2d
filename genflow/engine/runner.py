"""mmengine's Runner with GenFlow's loop, checkpoints and distributed wrapping."""

import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner as MMEngineRunner
from mmengine.visualization.vis_backend import BaseVisBackend
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from genflow.config.sections import TrainSection
from genflow.engine.averages import WeightAverage
from genflow.engine.checkpoint import TrainingState
from genflow.engine.distributed import training_device
from genflow.engine.loop import AutocastOptimWrapper, UpdateLoop
from genflow.engine.signals import StopRequest
from genflow.engine.visualizer import RunVisualizer
from genflow.engine.watchdog import Watchdog
from genflow.methods.base import Method


class Runner(MMEngineRunner):
    """Trains a method from ``state.step`` on.

    Args:
        state: method, optimizer, schedulers and averages, on the training device.
        work_dir: run folder.
        loader: endless loader that starts at update ``state.step``.
        section: how long to train.
        optimizer: wraps the optimizer of ``state``.
        hooks: default hooks by name and further hooks.
        backends: where logs go besides the run folder's own files.
        launcher: ``none``, or the launcher that started the process group.
    """

    def __init__(
        self,
        state: TrainingState,
        work_dir: Path,
        loader: DataLoader,
        section: TrainSection,
        optimizer: AutocastOptimWrapper,
        hooks: tuple[dict[str, Any], list[Hook]],
        backends: list[BaseVisBackend],
        launcher: str,
    ):
        self.state = state
        self.section = section
        self.stop = StopRequest()
        self.watchdog = Watchdog(section.stall_seconds)
        self.batch_size: int = loader.batch_sampler.global_batch
        # mmengine keeps its loggers and visualizers by this name.
        name = f"{work_dir.absolute()} {time.time_ns()}"
        super().__init__(
            model=state.method,
            work_dir=str(work_dir),
            train_dataloader=loader,
            train_cfg={"by_epoch": False, "max_iters": section.max_iters},
            optim_wrapper=optimizer,
            param_scheduler=state.schedulers or None,
            default_hooks=hooks[0],
            custom_hooks=hooks[1],
            launcher=launcher,
            log_processor={"by_epoch": False, "window_size": hooks[0]["logger"].interval},
            randomness={"seed": state.seed % 2**32},
            visualizer=RunVisualizer.get_instance(name, vis_backends=backends),
            experiment_name=name,
        )

    @property
    def method(self) -> Method:
        """The method without its distributed wrapper."""
        return self.state.method

    @property
    def exported_average(self) -> WeightAverage | None:
        """The average that samples and artifacts use: the recipe's first, or None for the weights themselves."""
        return next(iter(self.state.averages.values()), None)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap for several processes, with or without GPUs; mmengine's own needs GPUs."""
        if not self.distributed or isinstance(model, FSDPModule):
            return model
        device = training_device()
        device_ids = [device.index] if device.type == "cuda" else None
        return MMDistributedDataParallel(
            module=model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def build_train_loop(self, loop: Any) -> UpdateLoop:
        """The loop of updates."""
        if isinstance(loop, UpdateLoop):
            return loop
        return UpdateLoop(self, self._train_dataloader, self.section, self.state.seed)

    def load_or_resume(self) -> None:
        """The state is restored before the runner is built; the loop goes on from there."""
        self._has_loaded = True
        self.train_loop.iter = self.state.step
        if self.state.step:
            self.logger.info(f"resumed after {self.state.step} updates")

    def save_training_state(self, step: int) -> Path:
        """Write the checkpoint after ``step`` updates; every process calls it."""
        self.state.step = step
        if self.train_loop.rows is not None:
            self.train_loop.rows.settle()
        return self.state.save(Path(self.work_dir))

    def _init_model_weights(self) -> None:
        """Weights are initialised by the components' constructors."""

    def build_logger(self, *arguments: Any, **options: Any) -> MMLogger:
        """mmengine's, which says nothing if its own file cannot be written: the next file of the run will."""
        logger = super().build_logger(*arguments, **options)
        for handler in logger.handlers:
            handler.handleError = lambda record: None  # logging's prints a traceback for every line
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        """One line in the place of mmengine's page."""
        device = f"CPU, {torch.get_num_threads()} threads"
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        processes = f"{self._world_size} process(es)"
        self.logger.info(f"torch {torch.__version__}, {device}, {processes}, seed {self.state.seed}")

    def get_hooks_info(self) -> str:
        """The hooks in their order, on one line."""
        return ", ".join(type(hook).__name__ for hook in self._hooks)

    def dump_config(self) -> None:
        """The run folder's recipe.yaml is written by :mod:`genflow.engine.train`."""
