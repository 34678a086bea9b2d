"""Guidance of one fixed scale, mixed from three velocities (MeanFlow, arXiv 2505.13447; docs/pmf.md, P7)."""

import torch

from genflow.condition import Condition
from genflow.draws import Draws
from genflow.guidance.base import GuidedTarget, OwnVelocity, VelocityGuidance
from genflow.ranges import Interval, Scale, Share
from genflow.registry import GUIDANCE
from genflow.time_samplers.base import Times


@GUIDANCE.register_module()
class FixedMixture(VelocityGuidance):
    """v_g = w v_t + (1 - w - k) v_null + k v_c where t lies in the interval, v_t elsewhere; also the tangent.

    The effective scale is w / (1 - k). The model has no input for it, so samples always have this guidance.

    Args:
        scale: w.
        mixing: k, the share of the model's own velocity with class.
        interval: the times that are guided.
        label_drop: share of samples that lose their label.

    Raises:
        ValueError: the interval's end lies before its start.
    """

    highest_scale = 1.0  # no other can be asked for

    def __init__(self, scale: Scale, mixing: Share, interval: Interval = (0.0, 1.0), label_drop: Share = 0.1):
        super().__init__()
        if interval[0] > interval[1]:
            raise ValueError(f"interval {list(interval)} ends before it starts")
        self.scale = scale
        self.mixing = mixing
        self.interval = interval
        self.label_drop = label_drop

    def condition(self, draws: Draws, labels: torch.Tensor, times: Times) -> Condition:
        return Condition(labels=labels)

    def forward(
        self,
        own: OwnVelocity,
        conditional: torch.Tensor,
        condition: Condition,
        times: Times,
        dropped: torch.Tensor,
        num_classes: int,
        needed_rows_only: bool = True,
    ) -> GuidedTarget:
        start, end = self.interval
        guided = (start <= times.t) & (times.t <= end) & ~dropped
        rows = guided.nonzero().flatten() if needed_rows_only else torch.arange(len(guided))
        rows, guided = (value.to(conditional.device, non_blocking=True) for value in (rows, guided))
        null = condition.rows(rows).unlabelled(num_classes)
        mixed = self.scale * conditional[rows] + (1 - self.scale - self.mixing) * own(rows, null)
        if self.mixing or not needed_rows_only:
            mixed = mixed + self.mixing * own(rows, condition.rows(rows))
        velocity = conditional.clone()
        velocity[rows] = torch.where(guided[rows].view(-1, 1, 1, 1), mixed, conditional[rows])
        return GuidedTarget(velocity, velocity)
