"""Learning-rate schedule."""

import math
import warnings
from typing import Any, Literal

from mmengine.optim import _ParamScheduler
from torch.optim import Optimizer

from genflow.config.graph import ComponentGraph
from genflow.errors import UserError, reason
from genflow.ranges import NotNegative, Positive, Size
from genflow.registry import PARAM_SCHEDULERS

#: Updates from the first on in which schedules are tried out.
_REHEARSED = 100


def build_schedulers(graph: ComponentGraph, optimizer: Optimizer) -> list[_ParamScheduler]:
    """The schedules of a recipe; what it does not say of a schedule's end or unit is that of training.

    Raises:
        UserError: one refuses its arguments.
    """
    schedulers = []
    for scheduler in graph.section("param_scheduler"):
        scheduler.fill("total_iters", graph.section("train_cfg").max_iters)
        scheduler.fill("by_epoch", False)
        if scheduler.arguments.get("by_epoch"):
            where = f"{graph.source}: {scheduler.node.path}.by_epoch"
            raise UserError(f"{where}: found true, expected false or nothing: training counts updates, not epochs")
        schedulers.append(scheduler(optimizer))
    return schedulers


def rehearse_schedulers(graph: ComponentGraph, optimizer: Optimizer) -> None:
    """Step the schedules of a recipe at the beginning and at the end of training, where one of them may stop.

    Args:
        graph: the recipe.
        optimizer: whose rates are nonsense afterwards.

    Raises:
        UserError: one refuses its arguments, or fails in an update.
    """
    updates = graph.section("train_cfg").max_iters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about schedules that go on without updates
        for number, scheduler in enumerate(build_schedulers(graph, optimizer)):
            for step in sorted({*range(1, min(updates, _REHEARSED) + 1), *range(max(1, updates - 2), updates + 1)}):
                try:
                    if step > scheduler._global_step + 1:
                        scheduler._global_step, scheduler.last_step = step - 1, step - 1 - scheduler.begin
                    scheduler.step()
                except Exception as error:  # whatever a class of others does
                    where = f"{graph.source}: param_scheduler.{number}"
                    raise UserError(f"{where}: fails in update {step} of {updates}: {reason(error)}") from error


@PARAM_SCHEDULERS.register_module()
class WarmupLR(_ParamScheduler):
    """Linear warm-up, then half a cosine down to ``minimum``, or constant (docs/biflow.md, B6; docs/drifting.md, D16).

    Update number k = 0, 1, ... uses start + (rate - start) * k / warmup while k < warmup, and the
    cosine reaches ``minimum`` after ``total_iters`` updates.

    Args:
        optimizer: whose groups' rates are the highest rates.
        warmup_iters: updates of the warm-up.
        decay: ``cosine`` or ``constant`` after it.
        minimum: rate at the end of a cosine.
        total_iters: updates of the whole schedule; the engine fills in ``train_cfg.max_iters``.
        start: rate at the beginning of the warm-up; None for ``minimum``.
    """

    def __init__(
        self,
        optimizer,
        warmup_iters: NotNegative,
        decay: Literal["cosine", "constant"] = "cosine",
        minimum: Size = 1e-6,
        total_iters: Positive | None = None,
        start: Size | None = None,
    ):
        if decay == "cosine" and total_iters is None:
            raise ValueError("a cosine needs total_iters")
        self.warmup_iters = warmup_iters
        self.decay = decay
        self.minimum = minimum
        self.total_iters = total_iters
        self.start = minimum if start is None else start
        super().__init__(optimizer, "lr", by_epoch=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from saved counters, at the rates that the present arguments call for."""
        super().load_state_dict(state_dict)
        for group, rate in zip(self.optimizer.param_groups, self._get_value(), strict=True):
            group["lr"] = rate
        self._last_value = [group["lr"] for group in self.optimizer.param_groups]

    def _get_value(self) -> list[float]:
        """The rates after ``last_step`` updates."""
        step, lowest, share = self.last_step, self.minimum, 1.0
        if step < self.warmup_iters:
            lowest, share = self.start, step / self.warmup_iters
        elif self.decay == "cosine":
            progress = (step - self.warmup_iters) / max(1, self.total_iters - self.warmup_iters)
            share = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        return [lowest + (rate - lowest) * share for rate in self.base_values]
