"""The contract of generators: the inference part of a method alone, noise and a Condition in, samples out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.errors import UserError, reason
from genflow.flow_teachers.base import FlowTeacher

Precision = Literal["float32", "float16", "bfloat16"]
Network = Backbone | FlowTeacher


class Generator(nn.Module):
    """Maps noise to samples; what a run saves, what is sampled, and what FLOPs are counted on.

    Args:
        network: the trained module; its weights are the artifact of a run. It says ``image_shape`` and
            ``num_classes``, and its ``style_codes`` if samples have any.
        codec: decodes samples to images; its weights are not part of the artifact.
        default_guidance: the scale used when none is asked for.
    """

    #: A recipe cannot build one; in a slot it names a prerequisite that trains one.
    kind = "generator"
    #: The guidance scale that is no guidance.
    no_guidance: float = 0.0
    #: The smallest guidance scale that has a meaning.
    lowest_guidance: float = float("-inf")
    #: The largest scale that training has shown the network; infinite where the scale is none of its inputs.
    highest_guidance: float = float("inf")
    #: Parts of the network that may each have a guidance scale of their own.
    guided_groups: int = 1
    network: Network
    codec: Codec

    def __init__(self, network: Network, codec: Codec, default_guidance: float = 0.0):
        super().__init__()
        self.network = network
        self.codec = codec
        self.default_guidance = default_guidance

    @property
    def nfe(self) -> int:
        """Sequential evaluations of the network per image."""
        return 1

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample and of its noise."""
        return self.network.image_shape

    @property
    def num_classes(self) -> int:
        """Classes; 0 for an unconditional generator."""
        return self.network.num_classes

    @property
    def device(self) -> torch.device:
        """Where the network is; the CPU for one without parameters."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """(B, *noise_shape) standard normal noise to (B, *latent_shape) samples in the codec's space."""
        raise NotImplementedError

    def evaluate(self, noise: Tensor, condition: Condition) -> Tensor:
        """One evaluation of the network, which is also what is counted; :attr:`nfe` says how many a sample takes."""
        raise NotImplementedError

    def condition(self, labels: Tensor, guidance: float | Sequence[float] | Tensor | None = None) -> Condition:
        """The condition of a batch.

        Args:
            labels: (B,) class labels; ``num_classes`` for "no class".
            guidance: one scale, or one for each group of the network, in the order of the flow's states that they
                face; (B,) scales as they are; None takes the default.

        Raises:
            UserError: a scale below ``lowest_guidance``, or the wrong number of them.
        """
        if isinstance(guidance, Tensor):
            return Condition(labels=labels, guidance=guidance)
        given = self.default_guidance if guidance is None else guidance
        scales = [given] if isinstance(given, (int, float)) else list(given)
        for scale in scales:
            if not scale >= self.lowest_guidance:
                raise UserError(f"guidance: found {scale}, expected at least {self.lowest_guidance:g}")
        if len(scales) not in (1, self.guided_groups):
            more = f" or {self.guided_groups}" if self.guided_groups > 1 else ""
            raise UserError(f"guidance: found {len(scales)} scales, expected 1{more}")
        # Filled on the device: to copy them there would wait for it.
        columns = [torch.full((len(labels),), scale, dtype=torch.float32, device=labels.device) for scale in scales]
        return Condition(labels=labels, guidance=columns[0] if len(scales) == 1 else torch.stack(columns, dim=1))

    def draw(
        self,
        draws: Draws,
        labels: Tensor,
        guidance: float | Sequence[float] | Tensor | None = None,
        prefix: str = "sampling ",
    ) -> tuple[Tensor, Condition]:
        """Draw what samples are made of.

        Args:
            draws: (N,); each gives noise and style to one sample, or to equally many that follow each other.
            labels: (B,) class labels, B a multiple of N.
            guidance: as in :meth:`condition`, which says what it raises.
            prefix: of the names of the random streams; training has draws of its own.

        Returns:
            (B, *noise_shape) noise, and the condition with style codes where the network wants any.
        """
        count = len(labels) // len(draws)
        noise = draws.normal(f"{prefix}noise", (count, *self.noise_shape)).flatten(0, 1)
        condition = self.condition(labels, guidance)
        codebooks, entries = getattr(self.network, "style_codes", (0, 0))
        if codebooks:
            style = draws.integers(f"{prefix}style", entries, (count, codebooks)).flatten(0, 1)
            condition = replace(condition, style=style)
        return noise, condition

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

    def accelerate(self, precision: Precision = "float32", compile: bool = False) -> None:
        """Make evaluations faster from now on, on the device where the network is, at the price of exactness.

        Args:
            precision: what the network's weights are cast to, and its products are computed in.
            compile: compile the evaluation.

        Raises:
            UserError: this generator has no such form.
        """
        if compile or precision != "float32":
            raise UserError(f"--precision and --compile: a {type(self).__name__} has no fast form")

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor | Sequence[int],
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
            guidance: as in :meth:`condition`.
            first_index: number of the first image.
            decode: decode to pixels; otherwise return the codec's space.

        Returns:
            (B, C, H, W) images in [-1, 1], or undecoded samples.

        Raises:
            UserError: as :meth:`condition`, or a sample is not finite.
        """
        labels = torch.as_tensor(labels).to(self.device, non_blocking=True)
        positions = torch.arange(first_index, first_index + len(labels), device=labels.device)
        samples = self(*self.draw(Draws(seed, positions), labels, guidance))
        if not samples.isfinite().all():  # clipping would hide infinite ones
            last = first_index + len(labels) - 1
            raise UserError(f"the generator returned samples that are not finite among images {first_index} to {last}")
        return self.codec.decode(samples).clamp(-1, 1) if decode else samples


class NetworkGenerator(Generator):
    """A generator whose evaluations are all of one function, :meth:`_evaluate`, which can be cast and compiled.

    Args:
        network, codec, default_guidance: as in :class:`Generator`.
    """

    def __init__(self, network: Network, codec: Codec, default_guidance: float = 0.0):
        super().__init__(network, codec, default_guidance)
        self._precision = torch.float32
        self._run: Callable[..., Tensor] = self._evaluate

    def accelerate(self, precision: Precision = "float32", compile: bool = False) -> None:
        if precision != "float32":
            cast_weights(self.network, precision)
            self._precision = getattr(torch, precision)
        if compile:
            self._run = compiled(self._evaluate, self.device)

    def _evaluate(self, *inputs: Any, **options: Any) -> Tensor:
        """What :meth:`evaluate` runs through ``_run``, with the network in ``_precision``; takes what that gives it."""
        raise NotImplementedError


def cast_weights(module: nn.Module, precision: Precision) -> None:
    """Cast parameters in place; buffers, such as rotary angles and a flow's statistics, stay as they are."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(getattr(torch, precision))


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """``function`` compiled for one batch size after the other, on a GPU as CUDA graphs.

    It raises UserError if torch.compile fails, which shows at the first call.
    """
    fast = torch.compile(function, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)

    def call(*inputs: Any) -> Tensor:
        try:
            return fast(*inputs).clone()  # the next replay of a CUDA graph overwrites its output
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(f"--compile: torch.compile failed: {reason(error)}") from error

    return call
