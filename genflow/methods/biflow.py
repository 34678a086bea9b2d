"""BiFlow (arXiv 2512.10953): a free bidirectional transformer learns the inverse of a frozen flow."""

from typing import Literal

import torch
from torch import Tensor

from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.flow_teachers.base import FlowTeacher
from genflow.generators.reverse import OnePassGenerator, TwoPassGenerator
from genflow.guidance.base import ReverseGuidance
from genflow.inverse_heads.base import InverseHead
from genflow.losses.base import Loss
from genflow.methods.base import Method
from genflow.methods.perceptual import PerceptualLoss, PerceptualSection
from genflow.ranges import Size
from genflow.registry import METHODS


@METHODS.register_module()
class BiFlow(Method):
    """Stage 2: align the reverse model with the flow's trajectory and reconstruct the clean data.

    The flow maps noisy data to noise in one parallel pass; the reverse model maps it back to clean data,
    so that it denoises as it inverts, or to the noisy data itself (docs/biflow.md, B11, B15).

    Args:
        teacher: the trained flow; frozen.
        inverse: the reverse model with its supervision.
        codec: decodes samples.
        reconstruction: distance between samples and data.
        noise_std: standard deviation of the noise added to normalised data, the teacher's own.
        guidance: guidance learned in training, or ordinary guidance by two passes; None trains without, and
            without dropping labels, as everything without classes must.
        default_guidance: scale used for sampling when none is asked for.
        denoising: ``learned``: the reverse model reconstructs clean data; ``none``: the noisy data that the flow
            saw; ``score``: the noisy data, and sampling ends with a score step of the teacher.
        perceptual: distances between decoded samples and decoded data, beside the reconstruction.

    Raises:
        ValueError: teacher, reverse model and codec do not fit each other, a default scale without guidance, or
            guidance without classes.
    """

    frozen = ("teacher", "codec", "perceptual")
    training_only = ("perceptual",)
    artifact = "inverse.backbone"
    progress = ("mean_squared_error",)

    def __init__(
        self,
        teacher: FlowTeacher,
        inverse: InverseHead,
        codec: Codec,
        reconstruction: Loss,
        noise_std: Size,
        guidance: ReverseGuidance | None = None,
        default_guidance: float = 0.0,
        denoising: Literal["learned", "score", "none"] = "learned",
        perceptual: PerceptualSection | None = None,
    ):
        super().__init__()
        backbone = inverse.backbone
        for what in ("image_shape", "num_classes"):
            theirs, ours = getattr(teacher, what), getattr(backbone, what)
            if theirs != ours:
                raise ValueError(f"teacher and backbone differ in {what}: {theirs} and {ours}")
        if codec.latent_shape != teacher.image_shape:
            raise ValueError(f"the codec's latents are {codec.latent_shape}, the teacher takes {teacher.image_shape}")
        if guidance is not None and not backbone.num_classes:
            raise ValueError("guidance leads away from what has no class, but teacher and backbone have no classes")
        if guidance is None and default_guidance:
            raise ValueError(f"default_guidance is {default_guidance} without guidance in training")
        inverse.check_teacher(teacher)
        self.teacher = teacher
        self.inverse = inverse
        self.codec = codec
        self.reconstruction = reconstruction
        self.noise_std = noise_std
        self.guidance = guidance
        self.denoising = denoising
        self.perceptual = None if perceptual is None else PerceptualLoss(perceptual)
        denoiser = teacher if denoising == "score" else None
        if guidance is None or guidance.in_training:
            self.generator = OnePassGenerator(backbone, codec, default_guidance, denoiser, noise_std)
        else:
            per_group = inverse.supervises_groups
            self.generator = TwoPassGenerator(
                backbone, codec, default_guidance, denoiser, noise_std, per_group=per_group
            )
        self.generator.highest_guidance = 0.0 if guidance is None else guidance.highest_scale
        self.freeze()

    def forward(self, images: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        clean = self.codec.normalize(images)
        noisy = clean + self.noise_std * draws.normal("data noise", clean.shape[1:])
        scale = torch.zeros(len(clean), device=clean.device)
        if self.guidance is not None:
            # The flow sees the same dropped labels; otherwise z would carry what the null class cannot know.
            labels = self.guidance.drop_labels(labels, self.teacher.num_classes, draws)
            scale = self.guidance.draw(draws)
        with torch.no_grad():
            trajectory = self.teacher(noisy, labels)
        output = self.inverse(trajectory.latent, Condition(labels=labels, guidance=scale), self.guidance)
        terms = self.inverse.supervise(output.hidden, trajectory)
        target = clean if self.denoising == "learned" else noisy
        terms["reconstruction"] = self.reconstruction(output.sample, target)
        if self.perceptual is not None:
            with torch.no_grad():
                target_images = self.codec.decode(target)
            distances = self.perceptual(self.codec.decode(output.sample), target_images, draws)
            terms |= {f"perceptual_{name}": value for name, value in distances.items()}
        means = {name: value.mean() for name, value in terms.items()}
        # Squares, not their roots: a mean over parts of a batch is then that of the whole.
        squares = {f"state_square_{index}": state.square().mean() for index, state in enumerate(trajectory.states)}
        return {
            "loss": torch.stack(list(means.values())).sum(),
            **{name: value.detach() for name, value in means.items()},
            "mean_squared_error": (output.sample.detach().float() - clean).square().mean(),
            "saturation": trajectory.saturation,
            **squares,
        }
