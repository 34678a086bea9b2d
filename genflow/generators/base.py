"""Generators: the inference part of a method alone, noise and a Condition in, images out."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.errors import UserError


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
    #: Parts of the network that may each have a guidance scale of their own.
    guided_groups: int = 1
    #: Codebooks, and entries of each, from which every sample draws a style; see ``Backbone.style_codes``.
    style_codes: tuple[int, int] = (0, 0)

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

    def condition(self, labels: Tensor, guidance: float | Sequence[float] | None = None) -> Condition:
        """The condition of a batch with (B,) labels; ``guidance`` and errors as in :meth:`sample`."""
        given = self.default_guidance if guidance is None else guidance
        scales = [given] if isinstance(given, (int, float)) else list(given)
        for scale in scales:
            if not scale >= self.lowest_guidance:
                raise UserError(f"guidance: found {scale}, expected at least {self.lowest_guidance:g}")
        if len(scales) not in (1, self.guided_groups):
            more = f" or {self.guided_groups}" if self.guided_groups > 1 else ""
            raise UserError(f"guidance: found {len(scales)} scales, expected 1{more}")
        columns = torch.tensor(scales, dtype=torch.float32, device=labels.device).expand(len(labels), -1)
        return Condition(labels=labels, guidance=columns[:, 0] if len(scales) == 1 else columns)

    def set_sampling(self, steps: int | None = None, interval: Sequence[float] | None = None) -> None:
        """Change how samples are made.

        Args:
            steps: from noise to data.
            interval: first and last time with guidance, in [0, 1].

        Raises:
            UserError: this generator has no such choice, or the value is out of range.
        """
        for name, value in (("steps", steps), ("interval", interval)):
            if value is not None:
                raise UserError(f"{name}: found {value}, expected none: a {type(self).__name__} has no {name}")

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        seed: int,
        guidance: float | Sequence[float] | None = None,
        first_index: int = 0,
        decode: bool = True,
    ) -> Tensor:
        """Generate images number ``first_index`` ... of seed ``seed``.

        Image i of a seed has the noise and style of (seed, i), whatever the batch.

        Args:
            labels: (B,) class labels; ``num_classes`` for "no class".
            seed: seed of the noise.
            guidance: scale for the whole batch, or one for each group of the network, in the order of the
                flow's states that they face; None takes the generator's default.
            first_index: number of the first image.
            decode: decode to pixels; otherwise return the codec's space.

        Returns:
            (B, C, H, W) images in [-1, 1], or undecoded samples.

        Raises:
            UserError: ``guidance`` is below ``lowest_guidance`` or has the wrong number of scales, or a sample is
                not finite.
        """
        positions = torch.arange(first_index, first_index + len(labels), device=labels.device)
        draws = Draws(seed, positions)
        noise = draws.normal("sampling noise", self.noise_shape)
        condition = self.condition(labels, guidance)
        codebooks, entries = self.style_codes
        if codebooks:
            condition = replace(condition, style=draws.integers("sampling style", entries, (codebooks,)))
        samples = self(noise, condition)
        if not samples.isfinite().all():  # clipping would hide infinite ones
            last = first_index + len(labels) - 1
            raise UserError(f"the generator returned samples that are not finite among images {first_index} to {last}")
        return self.codec.decode(samples).clamp(-1, 1) if decode else samples
