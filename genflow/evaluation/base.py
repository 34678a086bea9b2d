"""The contract of evaluators."""

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.generators.base import Generator


class Evaluator:
    """Figures of merit of a generator.

    A subclass sets ``num_samples``, the number of images that it asks for.
    """

    kind = "evaluator"
    num_samples: int

    def check(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """See, before anything is trained, that a generator can be measured.

        Args:
            num_classes: of the generator; 0 if it is unconditional.
            image_shape: (C, H, W) of its decoded images.

        Raises:
            UserError: it cannot.
        """

    def evaluate(
        self,
        generator: Generator,
        seed: int = 0,
        guidance: float | None = None,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Generate ``num_samples`` images and measure them.

        Args:
            generator: on ``device``, in evaluation mode.
            seed: seed of the noise; the images are numbers 0, 1, ... of it.
            guidance: scale; None takes the generator's default.
            device: where to generate.
            progress: called with (images so far, ``num_samples``) after every batch.

        Returns:
            figures by name.

        Raises:
            UserError: as :meth:`check`, or the generator returned samples that are not finite.
        """
        raise NotImplementedError

    def reference(self, num_classes: int = 0) -> dict[str, float]:
        """The same figures for real data of these classes, 0 for all; empty where they have no meaning."""
        return {}

    def accuracy(self, images: Tensor, labels: Tensor) -> float | None:
        """The share of (B, C, H, W) images in [-1, 1] that show their (B,) labels; None without a classifier."""
        return None
