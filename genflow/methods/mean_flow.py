"""MeanFlow (arXiv 2505.13447), improved MeanFlow (2512.02012) and pixel MeanFlow (pMF, 2601.22158)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.field_estimators.base import VelocityEstimator
from genflow.generators.velocity import AverageVelocityGenerator
from genflow.guidance.base import GuidedTarget, VelocityGuidance
from genflow.layers.precision import without_graph
from genflow.losses.base import Loss
from genflow.methods import path
from genflow.methods.base import Method
from genflow.methods.perceptual import PerceptualLoss, PerceptualSection
from genflow.ranges import Interval, Share, Size
from genflow.registry import METHODS
from genflow.time_samplers.base import Times, TimeSampler


@dataclass(frozen=True)
class SavingsSection:
    """Work whose result would not count is left out; each can be switched off, with the same result (docs/pmf.md).

    Args:
        guidance: guidance evaluates the model only where its velocity counts.
        heads: only the heads that a call needs are computed.
        perceptual: perceptual networks see only the rows below ``perceptual_max_time``.
    """

    guidance: bool = True
    heads: bool = True
    perceptual: bool = True


@METHODS.register_module()
class MeanFlow(Method):
    """Learn average velocities by the identity v = u + (t - r) du/dt; one evaluation then samples (docs/pmf.md, P3).

    Args:
        backbone: predicts images or velocities; with a head ``auxiliary`` that head learns the velocity at t, and
            guidance takes the model's own velocities from it, otherwise from ``main`` at r = t.
        field: turns the backbone's outputs into velocities.
        times: draws t and r.
        codec: the space of the model.
        loss: distance of the compound velocity V, and of the auxiliary one, to the guided target.
        guidance: builds the target; None trains without, and moves z along the path to the data for the derivative.
        noise_scale: standard deviation of the noise.
        perceptual: distances between z - t u and the data, decoded.
        perceptual_max_time: rows with t at or above it have no perceptual terms.
        default_guidance, default_interval: scale and interval used for sampling when none is asked for.
        savings: for comparison.

    Raises:
        ValueError: backbone and codec do not fit, or the backbone needs guidance that is not there.
    """

    frozen = ("codec", "perceptual")
    training_only = ("perceptual", "backbone.auxiliary_depth")
    artifact = "backbone"
    progress = ("velocity_error",)

    def __init__(
        self,
        backbone: Backbone,
        field: VelocityEstimator,
        times: TimeSampler,
        codec: Codec,
        loss: Loss,
        guidance: VelocityGuidance | None = None,
        noise_scale: Size = 1.0,
        perceptual: PerceptualSection | None = None,
        perceptual_max_time: Share = 1.0,
        default_guidance: float = 1.0,
        default_interval: Interval = (0.0, 1.0),
        savings: SavingsSection = SavingsSection(),
    ):
        super().__init__()
        fields = ("guidance", "interval") if guidance is None else guidance.condition_fields
        for name in ("guidance", "interval"):
            if name in backbone.uses and name not in fields:
                guide = type(guidance).__name__
                raise ValueError(f"the {type(backbone).__name__} takes {name} as input, which {guide} does not give")
        self.backbone = backbone
        self.field = field
        self.times = times
        self.codec = codec
        self.loss = loss
        self.guidance = guidance
        self.noise_scale = noise_scale
        self.perceptual = None if perceptual is None else PerceptualLoss(perceptual)
        self.perceptual_max_time = perceptual_max_time
        self.savings = savings
        self.own_head = "auxiliary" if "auxiliary" in backbone.heads else "main"
        guided = guidance is not None and bool(guidance.condition_fields)
        self.default_interval = default_interval
        self.generator = AverageVelocityGenerator(
            backbone, field, codec, noise_scale, default_guidance, default_interval, guided=guided
        )
        self.generator.highest_guidance = 1.0 if guidance is None else guidance.highest_scale
        self.freeze()

    def forward(self, images: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        clean = self.codec.normalize(images)
        device, on_host = clean.device, draws.on_host()
        drawn = self.times(on_host)
        times = drawn.to(device)
        z = path.sample(clean, self.noise_scale * draws.normal("noise", clean.shape[1:]), times.t)
        conditional = self.field.conditional(z, clean, times.t)
        if self.guidance is None:
            dropped = torch.zeros_like(times.equal)
            condition = Condition.unguided(labels, self.default_interval)
            guided = GuidedTarget(conditional, conditional)
        else:
            whole = on_host.global_batch()  # laws that count rows are those of the global batch
            dropped = self.guidance.dropped(whole, self.times(whole).equal)[on_host.batch_indices]
            condition = self.guidance.condition(on_host, labels, drawn)
            guided = self._guide(z, conditional, condition, times, dropped)
            condition, dropped = condition.to(device), dropped.to(device, non_blocking=True)
        condition = condition.labelled(torch.where(dropped, self.num_classes, labels))
        fields = self.field(self.backbone, z, times, condition, guided.tangent, self.backbone.heads)
        target = guided.complete(fields.average if fields.auxiliary is None else fields.auxiliary)
        terms = {"velocity": self.loss(fields.compound, target)}
        figures = {"velocity_error": _mean_square(fields.compound, target)}
        if fields.auxiliary is not None:
            terms["auxiliary"] = self.loss(fields.auxiliary, target)
            figures["auxiliary_error"] = _mean_square(fields.auxiliary, target)
        if self.perceptual is not None:
            t = times.t.view(-1, 1, 1, 1)
            terms |= self._compare(z - t * fields.average, clean, times, draws)
        means = {name: value.mean() for name, value in terms.items()}
        return {
            "loss": torch.stack(list(means.values())).sum(),
            **{name: value.detach() for name, value in means.items()},
            **figures,
        }

    @without_graph()
    def _guide(
        self, z: Tensor, conditional: Tensor, condition: Condition, times: Times, dropped: Tensor
    ) -> GuidedTarget:
        """The guided target by the model's own velocities."""

        def own(rows: Tensor, condition: Condition) -> Tensor:
            if not len(rows):
                return z[rows]
            t = times.t[rows]
            heads = (self.own_head,) if self.savings.heads else self.backbone.heads
            return self.field.velocity(self.backbone, z[rows], t, t, condition, heads)[self.own_head]

        return self.guidance(
            own,
            conditional,
            condition,
            times.on_host,
            dropped,
            self.num_classes,
            needed_rows_only=self.savings.guidance,
        )

    def _compare(self, prediction: Tensor, clean: Tensor, times: Times, draws: Draws) -> dict[str, Tensor]:
        """Perceptual terms (B,); zero at late times, where the prediction says little."""
        early = times.on_host.t < self.perceptual_max_time
        rows = early.nonzero().flatten() if self.savings.perceptual else torch.arange(len(early))
        t, draws = times.t, draws[rows]
        rows, early = (value.to(t.device, non_blocking=True) for value in (rows, early))
        if not len(rows):
            return {f"perceptual_{name}": torch.zeros_like(t) for name in self.perceptual.losses}
        with torch.no_grad():
            target = self.codec.decode(clean[rows])
        distances = self.perceptual(self.codec.decode(prediction[rows]), target, draws)
        return {
            f"perceptual_{name}": torch.zeros_like(t).index_copy(0, rows, value.to(t.dtype)) * early
            for name, value in distances.items()
        }


def _mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.detach() - target).square().mean()
