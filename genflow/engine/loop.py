"""The training loop: one optimizer update after another, counted in updates."""

import math
import random
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genflow.config.sections import TrainSection
from genflow.engine.layers import telling_of_compilation
from genflow.engine.memory import telling_what_saves_memory
from genflow.engine.prefetch import Rows, micro_batches_of, rows_of
from genflow.engine.sharding import whole
from genflow.engine.signals import TrainingStopped
from genflow.engine.watchdog import BACKWARD, FORWARD, UPDATING, WAITING
from genflow.errors import Stopped
from genflow.methods.base import Method


class TrainingDiverged(Stopped):
    """A loss term or gradient is not finite; the weights are those of the last good update."""


class AutocastOptimWrapper(OptimWrapper):
    """An OptimWrapper that runs the forward pass under bfloat16 autocast on any device.

    mmengine's AmpOptimWrapper refuses CPUs; bfloat16 needs no loss scaling anywhere.

    Args:
        optimizer: the optimizer.
        precision: ``float32`` or ``bfloat16``.
        clip_grad_norm: largest global gradient norm; None never clips.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, precision: str, clip_grad_norm: float | None):
        super().__init__(optimizer)
        self.precision = precision
        self.clip_grad_norm = clip_grad_norm

    def start_update(self, parts: int) -> None:
        """Begin an update of so many micro-batches, the last of which sums the gradients of all processes."""
        self._accumulative_counts, self._inner_count = parts, 0
        self.zero_grad()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context of a micro-batch's forward pass."""
        device = next(model.parameters()).device
        autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")
        with super().optim_context(model), autocast:
            yield

    def _with_gradient(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """The global norm of the gradients, a scalar."""
        return whole(nn.utils.get_total_norm([parameter.grad for parameter in self._with_gradient()]))

    def clip(self, norm: Tensor) -> None:
        """Clip the gradients in place, given their global norm."""
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._with_gradient(), self.clip_grad_norm, norm)


def seed_step(seed: int, step: int) -> None:
    """Seed every global generator from (seed, step, rank).

    GenFlow's own draws do not use them; a custom component that does is then exact on resume as well.
    """
    value = (seed * 1_000_003 + step * 8191 + get_rank()) % 2**32
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


class UpdateLoop(BaseLoop):
    """Runs updates until ``max_iters``.

    Args:
        runner: GenFlow's runner.
        dataloader: endless; its batches are dictionaries of tensors and Draws.
        section: updates in all, resumed ones included, and parts of a process's batch that are run in turn.
        seed: see :func:`seed_step`.
    """

    def __init__(self, runner, dataloader: DataLoader, section: TrainSection, seed: int):
        super().__init__(runner, dataloader)
        self._max_iters = section.max_iters
        self.micro_batches = section.micro_batches
        self.seed = seed
        self.iter = 0
        self.epoch, self.max_epochs = 0, 1  # mmengine's hooks ask; the loop has no epochs
        self.stop_training = False
        self.asked_to_stop = False
        self.rows: Rows | None = None

    @property
    def max_iters(self) -> int:
        """Updates in all."""
        return self._max_iters

    def run(self) -> nn.Module:
        """Train; hooks see ``runner.iter``, the number of the update at hand, from 0.

        Raises:
            TrainingStopped: after an update, when a signal has come to any process.
            UserError: out of memory.
        """
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        device = next(runner.model.parameters()).device
        self.rows = Rows(iter(self.dataloader), self._method, device, self._max_iters - self.iter)
        try:
            while self.iter < self._max_iters and not self.stop_training:
                self._run_iter()
        finally:
            self.rows.close()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def _run_iter(self) -> None:
        runner = self.runner
        runner.watchdog.note(self.iter, WAITING)
        with telling_of_compilation(), telling_what_saves_memory(runner.batch_size, self.micro_batches):
            rows = next(self.rows)
            seed_step(self.seed, self.iter)
            runner.call_hook("before_train_iter", batch_idx=self.iter, data_batch=rows)
            values = self.update_on(rows)
        runner.watchdog.pause()
        runner.call_hook("after_train_iter", batch_idx=self.iter, data_batch=rows, outputs=values)
        self.iter += 1
        if self.asked_to_stop and self.iter < self._max_iters:
            raise TrainingStopped(runner.stop.number or signal.SIGTERM)

    @property
    def _method(self) -> Method:
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    def update(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """One update on a batch of the data set; otherwise as :meth:`update_on`."""
        return self.update_on(rows_of(batch, self._method, next(self.runner.model.parameters()).device))

    def update_on(self, rows: Mapping[str, Any]) -> dict[str, float]:
        """One update.

        Args:
            rows: the arguments of the method's ``forward`` for the whole update, on the device.

        Returns:
            Every loss term and the gradient norm, means over the global batch.

        Raises:
            TrainingDiverged: before the optimizer step, naming what is not finite.
        """
        model, method, optimizer = self.runner.model, self._method, self.runner.optim_wrapper
        parts = micro_batches_of(rows, self.micro_batches)
        with optimizer.optim_context(method):
            parts = method.prepare(parts)
        optimizer.start_update(len(parts))
        count = sum(len(part["labels"]) for part in parts)
        sums: dict[str, Tensor] = {}
        for part in parts:
            share = len(part["labels"]) / count
            self.runner.watchdog.note(self.iter, FORWARD)
            with optimizer.optim_context(model):
                terms = model(**part)
            self.runner.watchdog.note(self.iter, BACKWARD)
            optimizer.backward(terms["loss"] * share)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * share
        norm = optimizer.gradient_norm()
        # A signal may reach one process only; all have to end after the same update.
        stop = torch.full_like(norm, self.runner.stop.number > 0, dtype=torch.float32)
        means = torch.stack([*sums.values(), stop])
        all_reduce(means, op="mean")
        self.runner.watchdog.note(self.iter, UPDATING)
        *figures, stop, norm_value = torch.cat([means, norm.float().view(1)]).tolist()
        self.asked_to_stop = stop > 0
        named = dict(zip(sums, figures, strict=True))
        first = {name: named[name] for name in method.progress if name in named}
        values = {**first, **named, "grad_norm": norm_value}
        if not all(map(math.isfinite, values.values())):
            with optimizer.optim_context(method):
                diagnosis = method.diagnose(parts)
            raise self._diverged(values, diagnosis)
        optimizer.clip(norm)
        optimizer.step()
        method.after_update()
        return values

    def _diverged(self, values: dict[str, float], diagnosis: str) -> TrainingDiverged:
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        terms = [name for name in bad if name not in ("loss", "grad_norm")] or list(bad)
        message = f"update {self.iter + 1}: not finite: {', '.join(f'{name} = {bad[name]}' for name in terms)}"
        if diagnosis:
            message += f"; {diagnosis}"
        for name, parameter in self.runner.model.named_parameters():
            if parameter.grad is not None and not whole(parameter.grad.isfinite().all()):
                message += f"; first such gradient: {name}"
                break
        return TrainingDiverged(message)
