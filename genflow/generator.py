"""Generators: the inference part of a method alone, noise and a Condition in, images out."""

import torch
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.flow_teachers.base import FlowTeacher


class Generator(nn.Module):
    """Maps noise to samples; what a run saves, what is sampled, and what FLOPs are counted on.

    Args:
        network: the trained module; its weights are the artifact of a run.
        codec: decodes samples to images; its weights are not part of the artifact.
        noise_shape: (C, H, W) of one sample's noise.
        num_classes: classes; 0 for an unconditional generator.
        default_guidance: the scale used when none is asked for.
    """

    #: Sequential evaluations of the network per image.
    nfe: int = 1
    #: The smallest guidance scale that has a meaning.
    lowest_guidance: float = float("-inf")

    def __init__(
        self,
        network: nn.Module,
        codec: Codec,
        noise_shape: tuple[int, int, int],
        num_classes: int,
        default_guidance: float = 0.0,
    ):
        super().__init__()
        self.network = network
        self.codec = codec
        self.noise_shape = noise_shape
        self.num_classes = num_classes
        self.default_guidance = default_guidance

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """(B, *noise_shape) standard normal noise to (B, *latent_shape) samples in the codec's space."""
        raise NotImplementedError

    def counted(self, noise: Tensor, condition: Condition) -> Tensor:
        """A computation with the multiply-adds of one :meth:`forward`, quick to trace."""
        return self(noise, condition)

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        seed: int,
        guidance: float | None = None,
        first_index: int = 0,
        decode: bool = True,
    ) -> Tensor:
        """Generate images number ``first_index`` ... of seed ``seed``.

        Image i of a seed has the noise of (seed, i), whatever the batch.

        Args:
            labels: (B,) class labels; ``num_classes`` for "no class".
            seed: seed of the noise.
            guidance: scale for the whole batch; None takes the generator's default.
            first_index: number of the first image.
            decode: decode to pixels; otherwise return the codec's space.

        Returns:
            (B, C, H, W) images in [-1, 1], or undecoded samples.

        Raises:
            UserError: ``guidance`` is below ``lowest_guidance``, or a sample is not finite.
        """
        positions = torch.arange(first_index, first_index + len(labels), device=labels.device)
        noise = Draws(seed, positions).normal("sampling noise", self.noise_shape)
        scale = self.default_guidance if guidance is None else guidance
        if not scale >= self.lowest_guidance:
            raise UserError(f"guidance: found {scale}, expected at least {self.lowest_guidance:g}")
        condition = Condition(
            labels=labels, guidance=torch.full((len(labels),), float(scale), device=labels.device)
        )
        samples = self(noise, condition)
        if not samples.isfinite().all():  # clipping would hide infinite ones
            last = first_index + len(labels) - 1
            raise UserError(f"the generator returned samples that are not finite among images {first_index} to {last}")
        return self.codec.decode(samples).clamp(-1, 1) if decode else samples


class OnePassGenerator(Generator):
    """A backbone applied once; scale 0 means no guidance."""

    lowest_guidance = 0.0

    def __init__(self, network: Backbone, codec: Codec, default_guidance: float = 0.0):
        super().__init__(network, codec, network.image_shape, network.num_classes, default_guidance)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        return self.network(noise, condition)["main"]


class FlowGenerator(Generator):
    """The exact inverse of a flow, then one score step that removes the training noise.

    Args:
        network: the flow.
        codec: as in :class:`Generator`.
        noise_std: standard deviation of the noise the flow was trained with; 0 leaves out the score step.
        default_guidance: as in :class:`Generator`; the published evaluation anneals it over the tokens.
    """

    def __init__(self, network: FlowTeacher, codec: Codec, noise_std: float, default_guidance: float = 0.0):
        super().__init__(network, codec, network.image_shape, network.num_classes, default_guidance)
        self.noise_std = noise_std
        self.nfe = network.inverse_evaluations + (1 if noise_std else 0)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        labels = condition.labels if self.num_classes else None
        guidance = 0.0 if condition.guidance is None else condition.guidance
        noisy = self.network.inverse(self.network.sample_prior(noise), labels, guidance)
        return self.network.denoise(noisy, labels, self.noise_std) if self.noise_std else noisy

    def counted(self, noise: Tensor, condition: Condition) -> Tensor:
        """One forward pass of the flow.

        The cached inverse runs every token through every layer once, as the forward pass does. Guidance
        (a second branch) and the score step (one more forward and its backward) are not counted.
        """
        return self.network(noise, condition.labels if self.num_classes else None).latent
