"""The contract of feature encoders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genflow.errors import UserError

_WITHOUT_WEIGHTS = ContextVar("encoders are built without weights", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Encoders that are built meanwhile fetch no weights, as on the meta device."""
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


def weights_are_wanted() -> bool:
    """Whether an encoder that is built now may fetch its weights."""
    return not _WITHOUT_WEIGHTS.get() and torch.get_default_device().type != "meta"


class FeatureEncoder(nn.Module):
    """A map from images to named features.

    A subclass sets ``feature_names``, the keys of what it returns.
    """

    kind = "feature encoder"
    #: What it takes: images in [-1, 1], or samples in the space that the generator works in.
    space: Literal["images", "samples"] = "images"
    feature_names: tuple[str, ...]
    #: Classes that :meth:`classify` tells apart; 0 if it does not classify.
    num_classes: int = 0
    #: Whether it has what encoding needs; one without can still be built and counted.
    has_weights: bool = True
    #: What a user can do about one that has not.
    weights_hint: str = "set its 'weights', or train without it, e.g. --cfg-options model.perceptual=null"
    #: Whether its features mean something; one that a run trains is at random until weights are loaded.
    trained: bool = True

    def fetch(self) -> None:
        """See whether weights that lie elsewhere can be had, of an encoder that was built on the meta device.

        ``has_weights`` says so afterwards, and ``weights_hint`` why not.
        """
        if self.has_weights:
            return
        try:
            with torch.device("meta"):
                self._fetch()
            self.has_weights = True
        except UserError as error:
            self.weights_hint = str(error)

    def _fetch(self) -> None:
        """Get its weights, so that they are there when it is built again.

        Raises:
            UserError: they cannot be had, as those of an encoder that knows of none.
        """
        raise UserError(self.weights_hint)

    def repeated_layers(self) -> Sequence[nn.Module]:
        """Its parts that training may compile, checkpoint or share out one by one (``train_cfg``)."""
        return ()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, C, H, W) images in [-1, 1], or samples, to ``{name: (B, tokens, channels)}``."""
        raise NotImplementedError

    def classify(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) images in [-1, 1], or samples, to (B, num_classes) logits, where the encoder classifies."""
        raise NotImplementedError

    def encode_and_classify(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Features as :meth:`forward`, and logits as :meth:`classify`, None of an encoder that does not classify.

        One whose logits come of its features computes both in one pass.
        """
        return self(images), self.classify(images) if self.num_classes else None

    @property
    def description(self) -> dict[str, str | int]:
        """What its features depend on beside its class and its weights."""
        return {}

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As torch's; the encoder counts as trained afterwards."""
        result = super().load_state_dict(*arguments, **options)
        self.trained = True
        return result

    def require_trained(self, where: str) -> None:
        """Refuse features that mean nothing; on the meta device weights are yet to come.

        Args:
            where: what the message calls this encoder.

        Raises:
            UserError: the encoder has no weights, or random ones.
        """
        if any(tensor.is_meta for tensor in (*self.parameters(), *self.buffers())):
            return
        if not self.has_weights:
            raise UserError(f"{where}: it has no weights: {self.weights_hint}")
        if not self.trained:
            hint = "name the artifact of a run, a prerequisite's as in '$classifier'"
            raise UserError(f"{where}: its weights are at random; {hint}")

    def require_weights(self, images: Tensor) -> None:
        """Refuse to encode without weights; on the meta device there is nothing to compute, so counting needs none.

        Raises:
            UserError: the encoder has no weights.
        """
        if not self.has_weights and not images.is_meta:
            raise UserError(f"{type(self).__name__} has no weights: set weights: to a local file")


class MaskedEncoder(FeatureEncoder):
    """An encoder that learns by filling in patches of samples that are hidden from it.

    A subclass sets ``image_shape`` (C, H, W), the shape of one sample, and ``patch_shape`` (C', H', W'), that of its
    patches.
    """

    image_shape: tuple[int, int, int]
    patch_shape: tuple[int, int, int]

    def patches(self, samples: Tensor) -> Tensor:
        """Cut (B, *image_shape) samples into (B, *patch_shape), a patch being one position."""
        raise NotImplementedError

    def reconstruct(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fill in patches.

        Args:
            patches: (B, *patch_shape), zero where they are hidden.

        Returns:
            (B, *patch_shape) reconstruction, and (B, num_classes) logits; None where the encoder does not classify.
        """
        raise NotImplementedError
