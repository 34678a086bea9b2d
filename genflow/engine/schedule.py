"""Learning-rate schedule."""

import math
from typing import Literal

from mmengine.optim import _ParamScheduler

from genflow.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupLR(_ParamScheduler):
    """Linear warm-up from ``minimum``, then half a cosine back to it, or constant (TARFlow, spec 1.9).

    Update number k = 0, 1, ... uses minimum + (rate - minimum) * k / warmup while k < warmup, and the
    cosine reaches ``minimum`` after ``total_iters`` updates.

    Args:
        optimizer: whose groups' rates are the highest rates.
        warmup_iters: updates of the warm-up.
        decay: ``cosine`` or ``constant`` after it.
        minimum: lowest rate.
        total_iters: updates of the whole schedule; the engine fills in ``train_cfg.max_iters``.
    """

    def __init__(
        self,
        optimizer,
        warmup_iters: int,
        decay: Literal["cosine", "constant"] = "cosine",
        minimum: float = 1e-6,
        total_iters: int | None = None,
    ):
        if decay == "cosine" and total_iters is None:
            raise ValueError("a cosine needs total_iters")
        self.warmup_iters = warmup_iters
        self.decay = decay
        self.minimum = minimum
        self.total_iters = total_iters
        super().__init__(optimizer, "lr", by_epoch=False)

    def factor(self, step: int) -> float:
        """Share of the way from the minimum to the highest rate after ``step`` updates, in [0, 1]."""
        if step < self.warmup_iters:
            return step / self.warmup_iters
        if self.decay == "constant":
            return 1.0
        progress = (step - self.warmup_iters) / max(1, self.total_iters - self.warmup_iters)
        return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

    def apply(self) -> None:
        """Set the rates that the present step and the present arguments call for."""
        for group, rate in zip(self.optimizer.param_groups, self._get_value(), strict=True):
            group["lr"] = rate
        self._last_value = [group["lr"] for group in self.optimizer.param_groups]

    def _get_value(self) -> list[float]:
        share = self.factor(self.last_step)
        return [self.minimum + (rate - self.minimum) * share for rate in self.base_values]
