"""Guidance with a random scale inside a random interval of time, both inputs of the model (docs/pmf.md, P6, P7)."""

from dataclasses import replace

import torch
from torch import Tensor

from genflow.condition import Condition
from genflow.draws import Draws
from genflow.guidance.base import GuidedTarget, OwnVelocity, VelocityGuidance, power_law
from genflow.ranges import Power, Scale, Share
from genflow.registry import GUIDANCE
from genflow.time_samplers.base import Times


@GUIDANCE.register_module()
class IntervalGuidance(VelocityGuidance):
    """v_g = v_t + (1 - 1/w) (v_c - v_null) for the scale w where t lies in the interval, v_t elsewhere.

    v_c and v_null are the model's own velocities with class and scale, and without either. Where r = t the
    interval is [0, 1]. The tangent is v_c, at scale 1 outside the interval.

    Args:
        max_scale: scales lie in [1, 1 + max_scale]; 0 trains without guidance.
        power: their density falls as scale^-power.
        interval: whether intervals are drawn, [U/2, (1 + U')/2]; otherwise all are [0, 1].
        label_drop: share of samples that lose their label.
    """

    condition_fields = ("guidance", "interval")

    def __init__(self, max_scale: Scale = 7.0, power: Power = 1.0, interval: bool = True, label_drop: Share = 0.1):
        super().__init__()
        self.max_scale = max_scale
        self.power = power
        self.interval = interval
        self.label_drop = label_drop

    @property
    def highest_scale(self) -> float:
        return 1 + self.max_scale

    def scale(self, uniform: Tensor) -> Tensor:
        """(B,) numbers in (0, 1) to scales."""
        return power_law(uniform, 1.0, 1 + self.max_scale, self.power)

    def condition(self, draws: Draws, labels: Tensor, times: Times) -> Condition:
        whole = torch.tensor([0.0, 1.0], device=times.t.device).expand(len(labels), 2)
        interval = whole
        if self.interval:
            ends = [draws.uniform("interval start"), 1 + draws.uniform("interval end")]
            interval = torch.where(times.equal.unsqueeze(1), whole, torch.stack(ends, dim=1) / 2)
        return Condition(labels=labels, guidance=self.scale(draws.uniform("guidance scale")), interval=interval)

    def forward(
        self,
        own: OwnVelocity,
        conditional: Tensor,
        condition: Condition,
        times: Times,
        dropped: Tensor,
        num_classes: int,
        needed_rows_only: bool = True,
    ) -> GuidedTarget:
        device = conditional.device
        start, end = condition.interval.unbind(1)
        scale = torch.where((start <= times.t) & (times.t <= end), condition.guidance, 1.0)
        plain = torch.ones_like(scale)
        interval = torch.stack([torch.zeros_like(scale), plain], dim=1).to(device, non_blocking=True)
        labelled = Condition(labels=condition.labels, guidance=scale, interval=interval).to(device)
        null = replace(labelled, guidance=plain).to(device).unlabelled(num_classes)
        share = torch.where(dropped, 0.0, 1 - 1 / scale).view(-1, 1, 1, 1).to(device, non_blocking=True)
        if not needed_rows_only:
            drawn = replace(labelled, guidance=condition.guidance).to(device)
            every = torch.arange(len(scale), device=device)
            guiding, without = own(every.repeat(2), drawn.joined(null)).chunk(2)
            return GuidedTarget(conditional + share * (guiding - without), own(every, labelled))
        # Inside the interval the tangent is the target's velocity with class; where r = t the trained pass has it.
        masks = (~times.equal, (scale > 1) & ~dropped)
        first, second = (mask.nonzero().flatten().to(device, non_blocking=True) for mask in masks)
        velocities = own(torch.cat([first, second]), labelled.rows(first).joined(null.rows(second)))
        with_class, without = torch.zeros_like(conditional), torch.zeros_like(conditional)
        with_class[first], without[second] = velocities.split([len(first), len(second)])
        own_share = share * times.equal.view(-1, 1, 1, 1).to(device, non_blocking=True)
        return GuidedTarget(conditional + share * (with_class - without), with_class, own_share)
