"""Instantaneous velocities: flow matching (JiT, arXiv 2511.13720)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.field_estimators.base import VelocityEstimator, VelocityFields
from genflow.layers.precision import full_precision
from genflow.ranges import Range, Share
from genflow.registry import FIELD_ESTIMATORS
from genflow.time_samplers.base import Times


@FIELD_ESTIMATORS.register_module()
class InstantaneousVelocity(VelocityEstimator):
    """v(z, t) of a network that predicts the clean image or the velocity itself.

    Args:
        prediction: ``x`` or ``v``.
        time_floor: the smallest time by which z - x is divided.
    """

    def __init__(self, prediction: Literal["x", "v"] = "x", time_floor: Annotated[Share, Range(above=0)] = 0.05):
        super().__init__()
        self.prediction = prediction
        self.time_floor = time_floor

    def timed(self, condition: Condition, t: Tensor, r: Tensor) -> Condition:
        """As in the contract; ``r`` is not looked at."""
        return replace(condition, time=t, duration=torch.zeros_like(t))

    def convert(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        with full_precision(z.device):
            output = output.to(z.dtype)
            return output if self.prediction == "v" else self.conditional(z, output, t)

    def forward(
        self,
        network: Backbone,
        z: Tensor,
        times: Times,
        condition: Condition,
        tangent: Tensor,
        heads: Sequence[str] = ("main",),
    ) -> VelocityFields:
        """As in the contract; there is nothing to differentiate."""
        velocity = self.velocity(network, z, times.t, times.r, condition)["main"]
        return VelocityFields(velocity, velocity, None)
