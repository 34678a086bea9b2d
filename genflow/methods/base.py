"""The contract of methods: trainable systems that wire components together, without layers of their own."""

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from genflow.draws import Draws
from genflow.generator import Generator
from genflow.weights import check_state


class Method(BaseModel):
    """A trainable system.

    A subclass lists in ``frozen`` its components that training leaves alone, and in ``artifact`` the
    constructor argument (a dotted path) that becomes the generator's network; it is what another recipe
    gets that names this one as a prerequisite. The constructor builds ``generator`` from its components,
    sharing their weights.
    """

    kind = "method"
    frozen: tuple[str, ...] = ()
    artifact: str
    generator: Generator

    def freeze(self) -> None:
        """Take gradients from the frozen components and keep them in evaluation mode; call it last."""
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Method":
        super().train(mode)
        for name in self.frozen:
            component = getattr(self, name, None)
            if component is not None:
                component.eval()
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """Parameters and buffers, without the frozen components and the generator's aliases."""
        skipped = tuple(f"{name}." for name in (*self.frozen, "generator"))
        return {name: value for name, value in self.state_dict().items() if not name.startswith(skipped)}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`trained_state` returned.

        Raises:
            ValueError: the state belongs to another recipe; names the first key or shape that differs.
        """
        check_state(self.trained_state(), state)
        self.load_state_dict(state, strict=False)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def after_update(self) -> None:
        """What changes once per update besides the weights; the loop calls it after the optimizer's step.

        Modules that keep running statistics have a method of the same name.
        """
        for module in self.modules():
            if module is not self and hasattr(module, "after_update"):
                module.after_update()

    def forward(
        self, images: Tensor, labels: Tensor, draws: Draws, mode: str = "loss", **extra: Any
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            images: (B, C, H, W), as the dataset stores them (before the codec's ``normalize``).
            labels: (B,) int64.
            draws: the random numbers of the samples.
            mode: ``loss``, the only one.

        Returns:
            ``{"loss": scalar with gradient, term: detached scalar, ...}``; all are means over the batch.
        """
        raise NotImplementedError
