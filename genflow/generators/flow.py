"""The generator of a flow: its exact inverse."""

from collections.abc import Callable

from torch import Tensor

from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.errors import UserError
from genflow.flow_teachers.base import FlowTeacher
from genflow.generators.base import Generator, Precision, cast_weights


class FlowGenerator(Generator):
    """The exact inverse of a flow, then one score step that removes the training noise.

    Args:
        network: the flow.
        codec: as in :class:`~genflow.generators.base.Generator`.
        noise_std: standard deviation of the noise the flow was trained with; 0 leaves out the score step.
        default_guidance: as in :class:`~genflow.generators.base.Generator`; the published evaluation anneals it over
            the tokens.
    """

    network: FlowTeacher

    def __init__(self, network: FlowTeacher, codec: Codec, noise_std: float, default_guidance: float = 0.0):
        super().__init__(network, codec, default_guidance)
        self.noise_std = noise_std

    @property
    def nfe(self) -> int:
        """Those of the inverse, and one for the score step."""
        return self.network.inverse_evaluations + (1 if self.noise_std else 0)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        labels = condition.labels if self.num_classes else None
        guidance = 0.0 if condition.guidance is None else condition.guidance
        noisy = self.network.inverse(self.network.sample_prior(noise), labels, guidance)
        return self.network.denoise(noisy, labels, self.noise_std) if self.noise_std else noisy

    def evaluate(self, noise: Tensor, condition: Condition) -> Tensor:
        """One forward pass of the flow.

        The cached inverse runs every token through every layer once, as the forward pass does. Guidance
        (a second branch) and the score step (one more forward and its backward) are not in it.
        """
        return self.network(noise, condition.labels if self.num_classes else None).latent

    def accelerate(self, precision: Precision = "float32", compile: bool = False) -> None:
        """As in the contract; compiled, the inverse is recorded as CUDA graphs. The flow keeps float32 tokens."""
        if precision != "float32":
            cast_weights(self.network, precision)
        if compile:
            capture: Callable[[], None] | None = getattr(self.network, "capture", None)
            if capture is None:
                raise UserError(f"--compile: the inverse of a {type(self.network).__name__} cannot be compiled")
            capture()
