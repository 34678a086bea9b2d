"""The contract of evaluators."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.generators.base import Generator


@dataclass(frozen=True)
class Share:
    """Which part of an evaluation a process does.

    Args:
        rank, size: its number, and that of the processes; every one of them calls :meth:`Evaluator.evaluate`.
        partial: where it keeps what is done, so that a killed call goes on; a name of these settings alone. None keeps
            nothing.
    """

    rank: int = 0
    size: int = 1
    partial: Path | None = None


ALONE = Share()


class Evaluator:
    """Figures of merit of a generator.

    A subclass sets ``num_samples``, the number of images that it asks for.
    """

    kind = "evaluator"
    num_samples: int
    #: Whether all images lie in memory at once.
    holds_images: bool = True
    #: Whether it has :meth:`bootstrap`.
    has_error_bars: bool = False

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
        share: Share = ALONE,
    ) -> dict[str, float]:
        """Generate ``num_samples`` images and measure them.

        Args:
            generator: on ``device``, in evaluation mode.
            seed: seed of the noise; the images are numbers 0, 1, ... of it.
            guidance: scale; None takes the generator's default.
            device: where to generate.
            progress: called with (images so far, images to do) after every batch, real ones included that are looked
                at for the first time.
            share: this process's part; one that is quick may do all of it in each.

        Returns:
            figures by name.

        Raises:
            UserError: as :meth:`check`, or the generator returned samples that are not finite.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What the figures depend on beside the generator, of plain JSON values; written beside them."""
        return {}

    def bootstrap(self, repeats: int, seed: int = 0) -> dict[str, float]:
        """Standard deviations of figures of the last :meth:`evaluate` by resampling its images, those of each label
        among themselves if their numbers are fixed.

        Raises:
            NotImplementedError: it has no error bars.
        """
        raise NotImplementedError

    def reference(self, num_classes: int = 0) -> dict[str, float]:
        """The same figures for real data of these classes, 0 for all; empty where they have no meaning."""
        return {}

    def accuracy(self, images: Tensor, labels: Tensor) -> float | None:
        """The share of (B, C, H, W) images in [-1, 1] that show their (B,) labels; None without a classifier."""
        return None
