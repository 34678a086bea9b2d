"""Flow matching with prediction of the image (JiT, arXiv 2511.13720) or of the velocity."""

from typing import Literal

from torch import Tensor

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.field_estimators.base import VelocityEstimator
from genflow.generators.velocity import InstantaneousVelocityGenerator
from genflow.guidance.base import drop_labels
from genflow.losses.base import Loss
from genflow.methods import path
from genflow.methods.base import Method
from genflow.ranges import Interval, Share, Size, Steps
from genflow.registry import METHODS
from genflow.time_samplers.base import TimeSampler


@METHODS.register_module()
class FlowMatching(Method):
    """Learn the velocity at every time; sampling integrates it over many steps, guided by two evaluations.

    Args:
        backbone: predicts images or velocities.
        field: turns its outputs into velocities.
        times: draws t; r is not looked at.
        codec: the space of the model.
        loss: distance of the velocity to that of the path to the data.
        noise_scale: standard deviation of the noise.
        label_drop: share of samples that lose their label.
        steps, solver: of sampling, when nothing else is asked for.
        default_guidance, default_interval: likewise; scale 1 is no guidance.

    Raises:
        ValueError: backbone and codec do not fit.
    """

    frozen = ("codec",)
    artifact = "backbone"
    progress = ("velocity_error",)

    def __init__(
        self,
        backbone: Backbone,
        field: VelocityEstimator,
        times: TimeSampler,
        codec: Codec,
        loss: Loss,
        noise_scale: Size = 1.0,
        label_drop: Share = 0.1,
        steps: Steps = 50,
        solver: Literal["euler", "heun"] = "heun",
        default_guidance: float = 1.0,
        default_interval: Interval = (0.0, 1.0),
    ):
        super().__init__()
        self.backbone = backbone
        self.field = field
        self.times = times
        self.codec = codec
        self.loss = loss
        self.noise_scale = noise_scale
        self.label_drop = label_drop
        self.default_interval = default_interval
        self.generator = InstantaneousVelocityGenerator(
            backbone, field, codec, noise_scale, default_guidance, default_interval, steps, solver=solver
        )
        self.freeze()

    def forward(self, images: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        clean = self.codec.normalize(images)
        times = self.times(draws.on_host()).to(clean.device)
        z = path.sample(clean, self.noise_scale * draws.normal("noise", clean.shape[1:]), times.t)
        labels = drop_labels(labels, self.label_drop, self.num_classes, draws)
        condition = Condition.unguided(labels, self.default_interval)
        velocity = self.field.velocity(self.backbone, z, times.t, times.t, condition)["main"]
        target = self.field.conditional(z, clean, times.t)
        loss = self.loss(velocity, target).mean()
        error = (velocity.detach() - target).square().mean()
        return {"loss": loss, "velocity": loss.detach(), "velocity_error": error}
