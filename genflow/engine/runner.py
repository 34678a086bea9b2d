"""mmengine's Runner with GenFlow's loop, checkpoints and distributed wrapping."""

from pathlib import Path
from typing import Any

import torch
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner
from torch import nn
from torch.utils.data import DataLoader

from genflow.engine.averages import WeightAverage
from genflow.engine.loop import AutocastOptimWrapper, UpdateLoop
from genflow.errors import UserError
from genflow.methods.base import Method
from genflow.sections import RecipeSections
from genflow.weights import check_state, read_checkpoint, write_checkpoint

CHECKPOINT_FORMAT = 1


def checkpoint_path(work_dir: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` updates lies."""
    return work_dir / "checkpoints" / f"step_{step:08d}.pt"


def find_checkpoints(work_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((work_dir / "checkpoints").glob("step_*.pt"))


class Runner(MMEngineRunner):
    """Trains a method.

    A checkpoint holds everything that an update depends on: trained weights and buffers, averages, optimizer,
    schedules, the number of updates done and the seed. Data order and all draws are functions of seed and
    update, so there is no generator or loader state to save.

    Args:
        method: the built method.
        work_dir: run folder.
        loader: endless loader that starts at the update to resume from.
        optimizer: over the method's trained parameters.
        schedulers: mmengine parameter schedulers.
        settings: the recipe's plain settings.
        batch_size: global batch size.
        hooks: default hooks by name and further hooks.
        launcher: ``none``, or the launcher that started the process group.
        name: name of the run, unique in this process (mmengine keeps its loggers by name).
        resume: a checkpoint's content, see :func:`genflow.weights.read_checkpoint`.
    """

    def __init__(
        self,
        method: Method,
        work_dir: Path,
        loader: DataLoader,
        optimizer: AutocastOptimWrapper,
        schedulers: list,
        settings: RecipeSections,
        batch_size: int,
        hooks: tuple[dict[str, Any], list],
        launcher: str,
        name: str,
        resume: dict[str, Any] | None,
    ):
        self.settings = settings
        self.batch_size = batch_size
        self.resume_state = resume
        super().__init__(
            model=method,
            work_dir=str(work_dir),
            train_dataloader=loader,
            train_cfg={"by_epoch": False, "max_iters": settings.train_cfg.max_iters},
            optim_wrapper=optimizer,
            param_scheduler=schedulers or None,
            default_hooks=hooks[0],
            custom_hooks=hooks[1],
            launcher=launcher,
            log_processor={"by_epoch": False, "window_size": settings.default_hooks.logger.interval},
            randomness={"seed": settings.seed % 2**32},
            experiment_name=name,
        )
        self.averages = {
            key: WeightAverage(self.method.trained_parameters(), rule) for key, rule in settings.ema.items()
        }

    @property
    def method(self) -> Method:
        """The method without its distributed wrapper."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    @property
    def exported_average(self) -> WeightAverage | None:
        """The average that samples and artifacts use: the recipe's first, or None for the weights themselves."""
        return next(iter(self.averages.values()), None)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move to the device and wrap for several processes; mmengine's own needs a GPU for that."""
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        model = model.to(device)
        if not self.distributed:
            return model
        device_ids = [device.index] if device.type == "cuda" else None
        return MMDistributedDataParallel(module=model, device_ids=device_ids, broadcast_buffers=False)

    def build_train_loop(self, loop: Any) -> UpdateLoop:
        """The loop of updates."""
        if isinstance(loop, UpdateLoop):
            return loop
        section = self.settings.train_cfg
        return UpdateLoop(
            self, self._train_dataloader, section.max_iters, section.micro_batches, self.settings.seed
        )

    def _init_model_weights(self) -> None:
        """Weights are initialised by the components' constructors."""

    def _log_env(self, env_cfg: dict) -> None:
        """One line in the place of mmengine's page."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        self.logger.info(
            f"torch {torch.__version__}, {device}, {self._world_size} process(es), seed {self.settings.seed}"
        )

    def get_hooks_info(self) -> str:
        """The hooks in their order, on one line."""
        return ", ".join(type(hook).__name__ for hook in self._hooks)

    def dump_config(self) -> None:
        """The run folder's recipe.yaml is written by :mod:`genflow.engine.artifacts`."""

    def save_training_state(self, step: int) -> Path:
        """Write the checkpoint after ``step`` updates; call it on the main process."""
        path = checkpoint_path(Path(self.work_dir), step)
        state = {
            "format": CHECKPOINT_FORMAT,
            "step": step,
            "seed": self.settings.seed,
            "model": self.method.trained_state(),
            "optimizer": self.optim_wrapper.optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers or []],
            "averages": {name: average.values for name, average in self.averages.items()},
        }
        write_checkpoint(path, state)
        return path

    def load_or_resume(self) -> None:
        """Restore the checkpoint given to the constructor, if any."""
        state, self._has_loaded = self.resume_state, True
        if state is None:
            return
        self.method.load_trained_state(state["model"])
        self.optim_wrapper.optimizer.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.param_schedulers or [], state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        for name, average in self.averages.items():
            average.load(state["averages"][name])
        self.train_loop.iter = state["step"]
        self.resume_state = None
        self.logger.info(f"resumed after {state['step']} updates")


def read_resumable(path: Path, method: Method, settings: RecipeSections, schedulers: int) -> dict[str, Any]:
    """Read a checkpoint and check that it continues this recipe, before anything is touched.

    Raises:
        UserError: not a checkpoint, or one of another recipe or seed.
    """
    state = read_checkpoint(path)
    found = state.get("format")
    if found != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: found format {found!r}, expected {CHECKPOINT_FORMAT}")
    try:
        check_state(method.trained_state(), state["model"])
    except ValueError as error:
        raise UserError(f"{path}: does not fit this recipe: {error}") from None
    if state["seed"] != settings.seed:
        raise UserError(f"{path}: was trained with seed {state['seed']}, this run has seed {settings.seed}")
    if state["averages"].keys() != settings.ema.keys() or len(state["schedulers"]) != schedulers:
        raise UserError(f"{path}: was trained with other 'ema' or 'param_scheduler' sections than this recipe")
    return state
