"""The contract of methods: trainable systems that wire components together, without layers of their own."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from genflow.data.feed import Feed
from genflow.draws import Draws
from genflow.generators.base import Generator
from genflow.weights import check_state


class Method(BaseModel):
    """A trainable system.

    A subclass lists in ``frozen`` its components (dotted paths) that training leaves alone (some may be None), and in
    ``artifact`` the constructor argument (a dotted path) whose weights a run saves: the generator's network, or
    what the method trains for other recipes, which get it when they name this one as a prerequisite. The
    constructor builds ``generator`` from its components, sharing their weights; a method that trains something
    else than a generator leaves it None. One that trains on other rows than the images of a batch builds a ``feed``.
    """

    kind = "method"
    frozen: tuple[str, ...] = ()
    #: Optional constructor arguments (dotted paths) that neither sampling nor counting needs; their weights are no part
    #: of the artifact.
    training_only: tuple[str, ...] = ()
    artifact: str
    #: Figures of :meth:`forward` that say best how training gets on; logs show them first.
    progress: tuple[str, ...] = ()
    feed: Feed | None = None
    #: Samples of the stream that :meth:`observe` sees before the first update.
    start_samples: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.generator = None

    @property
    def generator(self) -> Generator | None:
        """What samples; its modules are the method's own, so it is no part of the method's state."""
        return self._generator[0]

    @generator.setter
    def generator(self, generator: Generator | None) -> None:
        # Within a tuple a module is not registered a second time.
        self._generator = (generator,)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generator":  # past nn.Module, which would register it
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def artifact_module(self) -> nn.Module:
        """The component that ``artifact`` names."""
        return self.get_submodule(self.artifact)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images or stored latents that it trains on."""
        return self._sampler.codec.latent_shape

    @property
    def num_classes(self) -> int:
        """The classes that it can tell apart; 0 if it does not look at labels."""
        return self._sampler.num_classes

    @property
    def _sampler(self) -> Generator:
        if self.generator is None:
            raise NotImplementedError(f"{type(self).__name__} has no generator, and does not say what it trains on")
        return self.generator

    def freeze(self) -> None:
        """Take gradients from the frozen components and keep them in evaluation mode; call it last."""
        for component in self._frozen():
            component.requires_grad_(False)
        self.train()

    def _frozen(self) -> Iterator[nn.Module]:
        for name in self.frozen:
            component = operator.attrgetter(name)(self)
            if component is not None:
                yield component

    def train(self, mode: bool = True) -> "Method":
        super().train(mode)
        for component in self._frozen():
            component.eval()
        if self.generator is not None:
            self.generator.training = mode  # its modules are the method's own
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """Parameters and buffers, without the frozen components."""
        skipped = tuple(f"{name}." for name in self.frozen)
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

    def memory(self, parts: int) -> dict[str, int]:
        """Bytes that arguments of the constructor ask for in every process, by their names; parameters do not count.

        What cannot fit the machine is refused before training.

        Args:
            parts: into which processes and micro-batches divide the rows of an update.
        """
        return {}

    def prepare(self, parts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The micro-batches with what :meth:`forward` has to know of the whole batch, or need not compute again.

        Args:
            parts: the arguments of every micro-batch of an update; there may be one only.
        """
        return list(parts)

    def observe(self, images: Tensor, labels: Tensor, draws: Draws) -> None:
        """Take samples into the statistics with which training starts, without an update; arguments as :meth:`forward`.

        Called as often as :attr:`start_samples` asks for, before the first update of a run alone.
        """

    def diagnose(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """After a term was not finite: more about where, or nothing.

        Args:
            parts: what :meth:`prepare` returned.
        """
        return ""

    def after_update(self) -> None:
        """What changes once per update besides the weights; the loop calls it after the optimizer's step.

        Modules that keep running statistics have a method of the same name.
        """
        for module in self.modules():
            if module is not self and hasattr(module, "after_update"):
                module.after_update()

    def forward(self, images: Tensor, labels: Tensor, draws: Draws, **extra: Any) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            images: (B, C, H, W), as the dataset stores them (before the codec's ``normalize``).
            labels: (B,) int64.
            draws: the random numbers of the samples.
            extra: further entries of the rows that a feed makes, and what :meth:`prepare` adds.

        Returns:
            ``{"loss": scalar with gradient, term: detached scalar, ...}``; all are means over the batch.
        """
        raise NotImplementedError
