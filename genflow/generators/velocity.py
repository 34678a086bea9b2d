"""Generators that follow a velocity from noise to data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.errors import UserError
from genflow.field_estimators.base import VelocityEstimator
from genflow.generators.base import NetworkGenerator

Interval = tuple[float, float]


class VelocityGenerator(NetworkGenerator):
    """What generators of both kinds of velocity share.

    Args:
        network, codec, default_guidance: as in :class:`~genflow.generators.base.Generator`.
        field: turns the network's outputs into velocities.
        noise_scale: standard deviation of the noise at t = 1.
        default_interval: the guidance interval used when none is asked for.
        steps: equal steps from t = 1 to 0.
        guided: whether samples can be guided at all.

    Raises:
        ValueError: network and codec do not fit, or a default scale that has no meaning.
    """

    no_guidance = 1.0
    lowest_guidance = 1.0
    network: Backbone

    def __init__(
        self,
        network: Backbone,
        field: VelocityEstimator,
        codec: Codec,
        noise_scale: float,
        default_guidance: float = 1.0,
        default_interval: Interval = (0.0, 1.0),
        steps: int = 1,
        guided: bool = True,
    ):
        if codec.latent_shape != network.image_shape:
            raise ValueError(f"the codec's latents are {codec.latent_shape}, the backbone takes {network.image_shape}")
        super().__init__(network, codec, default_guidance)
        if default_guidance < 1:
            raise ValueError(f"default_guidance is {default_guidance}, 1 means no guidance and is the least")
        if not guided and default_guidance != 1:
            raise ValueError(f"default_guidance is {default_guidance}, but no scale can be asked for")
        self.field = field
        self.noise_scale = noise_scale
        self.guided = guided
        self.set_sampling(steps, default_interval)

    def set_sampling(self, steps: int | None = None, interval: Sequence[float] | None = None) -> None:
        if steps is not None:
            if steps < 1:
                raise UserError(f"steps: found {steps}, expected at least 1")
            self.steps = steps
        if interval is not None:
            start, end = interval
            if not 0 <= start <= end <= 1:
                raise UserError(f"interval: found {start:g} {end:g}, expected two times with 0 <= start <= end <= 1")
            self.interval = (float(start), float(end))

    def condition(self, labels: Tensor, guidance: float | Sequence[float] | Tensor | None = None) -> Condition:
        """As in the contract, with the guidance interval."""
        if not self.guided and not isinstance(guidance, Tensor) and guidance not in (None, 1, [1]):
            raise UserError(f"guidance: found {guidance}, expected none: this model was not trained with a scale")
        condition = super().condition(labels, guidance)
        ends = [torch.full(labels.shape, end, device=labels.device) for end in self.interval]
        return replace(condition, interval=torch.stack(ends, dim=1))

    @property
    def times(self) -> list[tuple[float, float]]:
        """Where every step starts and where it ends, from 1 to 0."""
        return [(1 - step / self.steps, 1 - (step + 1) / self.steps) for step in range(self.steps)]

    def evaluate(self, z: Tensor, condition: Condition, t: float = 1.0, r: float = 0.0) -> Tensor:
        """The network's velocity from time ``r`` to ``t`` at (B, *noise_shape) ``z``, that of one step by default."""
        # Tensors, so that a compiled evaluation serves every step.
        times = (z.new_full(z.shape[:1], time, dtype=torch.float32) for time in (t, r))
        return self._run(z, condition, *times)

    def _evaluate(self, z: Tensor, condition: Condition, t: Tensor, r: Tensor) -> Tensor:
        return self.field.velocity(self._network, z, t, r, condition)["main"]

    def _network(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        """The network in the precision of its weights; velocities are computed in float32."""
        if self._precision == torch.float32:
            return self.network(x, condition, heads)
        outputs = self.network(x.to(self._precision), condition, heads)
        return {name: output.float() for name, output in outputs.items()}


class AverageVelocityGenerator(VelocityGenerator):
    """Follows an average velocity; one step is one evaluation and gives the predicted image (docs/pmf.md, P14).

    Scale and interval are inputs of the network, which was trained to know what they do.
    """

    @property
    def nfe(self) -> int:
        """Evaluations of the network per image."""
        return self.steps

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        z = self.noise_scale * noise
        for t, r in self.times:
            z = z - (t - r) * self.evaluate(z, condition, t, r)
        return z


class InstantaneousVelocityGenerator(VelocityGenerator):
    """Integrates an instantaneous velocity; guidance inside the interval takes two evaluations in one batch.

    Args:
        network, field, codec, noise_scale, default_guidance, default_interval, steps: as in
            :class:`VelocityGenerator`.
        solver: ``euler``, or ``heun`` with a second evaluation in every step but the last (JiT).

    Raises:
        ValueError: as :class:`VelocityGenerator`.
    """

    def __init__(
        self,
        network: Backbone,
        field: VelocityEstimator,
        codec: Codec,
        noise_scale: float,
        default_guidance: float = 1.0,
        default_interval: Interval = (0.0, 1.0),
        steps: int = 1,
        solver: Literal["euler", "heun"] = "heun",
    ):
        super().__init__(network, field, codec, noise_scale, default_guidance, default_interval, steps)
        self.solver = solver

    @property
    def nfe(self) -> int:
        """Sequential evaluations per image; guided ones count once."""
        return self.steps if self.solver == "euler" else 2 * self.steps - 1

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        # Asked once per sampling and not in every step, for the answer waits for the device.
        # An exported graph has no answer yet.
        asked = torch.compiler.is_exporting() or bool((condition.needed("guidance") > 1).any())
        guided = bool(self.num_classes) and asked
        z = self.noise_scale * noise
        for t, r in self.times:
            slope = self._guided(z, t, condition, guided)
            ahead = z - (t - r) * slope
            if self.solver == "heun" and r > 0:
                ahead = z - (t - r) / 2 * (slope + self._guided(ahead, r, condition, guided))
            z = ahead
        return z

    def _guided(self, z: Tensor, t: float, condition: Condition, guided: bool) -> Tensor:
        scale = condition.needed("guidance")
        start, end = self.interval
        if not guided or not start <= t <= end:
            return self.evaluate(z, condition, t, t)
        plain = replace(condition, guidance=torch.ones_like(scale))
        both = plain.joined(plain.unlabelled(self.num_classes))
        # Not in chunks, whose number is not known before the batch is.
        with_class, without = self.evaluate(z.repeat(2, 1, 1, 1), both, t, t).unflatten(0, (2, -1))
        return without + scale.view(-1, 1, 1, 1) * (with_class - without)
