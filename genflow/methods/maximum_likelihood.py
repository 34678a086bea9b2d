"""Training of a normalizing flow by maximum likelihood (TARFlow, arXiv 2412.06329; stage 1 of BiFlow)."""

from torch import Tensor

from genflow.codecs.base import Codec
from genflow.draws import Draws
from genflow.flow_teachers.base import FlowTeacher
from genflow.generators.flow import FlowGenerator
from genflow.guidance.base import drop_labels
from genflow.methods.base import Method
from genflow.ranges import Share, Size
from genflow.registry import METHODS


@METHODS.register_module()
class MaximumLikelihood(Method):
    """loss = mean(z^2) / 2 - mean(log-determinant per dimension) on noisy data (docs/biflow.md, B4, B6).

    Args:
        flow: the flow to train.
        codec: decodes samples.
        noise_std: standard deviation of the Gaussian noise added to normalised data.
        label_drop: share of samples that lose their label.
        guidance: default scale of the exact inverse when sampling.
        denoise: whether sampling ends with one score step that removes the noise.

    Raises:
        ValueError: flow and codec do not fit each other.
    """

    frozen = ("codec",)
    artifact = "flow"

    def __init__(
        self,
        flow: FlowTeacher,
        codec: Codec,
        noise_std: Size,
        label_drop: Share = 0.1,
        guidance: float = 0.0,
        denoise: bool = True,
    ):
        super().__init__()
        if codec.latent_shape != flow.image_shape:
            raise ValueError(f"the codec's latents are {codec.latent_shape}, the flow takes {flow.image_shape}")
        self.flow = flow
        self.codec = codec
        self.noise_std = noise_std
        self.label_drop = label_drop
        self.generator = FlowGenerator(flow, codec, noise_std if denoise else 0.0, guidance)
        self.freeze()

    def forward(self, images: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        clean = self.codec.normalize(images)
        noisy = clean + self.noise_std * draws.normal("data noise", clean.shape[1:])
        trajectory = self.flow(noisy, drop_labels(labels, self.label_drop, self.flow.num_classes, draws))
        prior = 0.5 * trajectory.latent.square().mean()
        log_det = trajectory.log_det.mean()
        return {
            "loss": prior - log_det,
            "prior": prior.detach(),
            "log_det": log_det.detach(),
            "saturation": trajectory.saturation,
        }
