"""Figures for generators of :class:`~genflow.data.digits.Digits`."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genflow.data.digits import Digits
from genflow.errors import UserError
from genflow.evaluation.base import Evaluator
from genflow.evaluation.metrics import frechet_distance, precision_recall
from genflow.generators.base import Generator
from genflow.ranges import Positive
from genflow.registry import EVALUATORS


@EVALUATORS.register_module()
class DigitsEvaluator(Evaluator):
    """Accuracy, Fréchet distance, precision and recall of generated digits, in their 64 pixels.

    ``accuracy`` is the share of images to which a support vector classifier (``gamma`` 0.02, ``C`` 10),
    fitted to the training half, gives the label asked for; ``fd``, ``precision`` and ``recall`` (k = 3)
    compare the images with the held-out half.

    Args:
        per_class: images of each digit.
        batch_size: images generated at a time; does not change the figures.
    """

    def __init__(self, per_class: Positive = 100, batch_size: Positive = 250):
        self.num_samples = Digits.num_classes * per_class
        self.batch_size = batch_size

    def evaluate(
        self,
        generator: Generator,
        seed: int = 0,
        guidance: float | None = None,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """As :meth:`Evaluator.evaluate`; image i is asked to show digit i % 10.

        Returns:
            ``{"accuracy", "fd", "precision", "recall"}``.

        Raises:
            UserError: the generator makes images of another shape than (1, 8, 8), or not finite ones.
        """
        labels = torch.arange(self.num_samples) % Digits.num_classes
        parts = []
        for first in range(0, self.num_samples, self.batch_size):
            asked = labels[first : first + self.batch_size].to(device)
            parts.append(generator.sample(asked, seed, guidance, first).cpu())
            if progress is not None:
                progress(first + len(asked), self.num_samples)
        images = torch.cat(parts)
        return {"accuracy": self.accuracy(images, labels), **self._distances(_pixels(images))}

    def reference(self) -> dict[str, float]:
        """The figures of real digits: accuracy on the held-out half, the training half as if generated."""
        accuracy = self.accuracy(self._test.images, self._test.labels)
        return {"accuracy": accuracy, **self._distances(_pixels(self._train.images))}

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """As :meth:`Evaluator.accuracy`, by the classifier.

        Raises:
            UserError: images of another shape than (1, 8, 8).
        """
        return float(self._classifier.score(_pixels(images), labels.numpy()))

    @cached_property
    def _train(self) -> Digits:
        return Digits("train")

    @cached_property
    def _test(self) -> Digits:
        return Digits("test")

    @cached_property
    def _classifier(self) -> Any:
        # Imported here so that `import genflow` stays light.
        from sklearn.svm import SVC

        return SVC(gamma=0.02, C=10).fit(_pixels(self._train.images), self._train.labels.numpy())

    def _distances(self, pixels: NDArray[np.float64]) -> dict[str, float]:
        real = _pixels(self._test.images)
        precision, recall = precision_recall(real, pixels, k=3)
        return {"fd": frechet_distance(real, pixels), "precision": precision, "recall": recall}


def _pixels(images: Tensor) -> NDArray[np.float64]:
    """(N, 1, 8, 8) images to (N, 64) float64."""
    if images.shape[1:] != Digits.image_shape:
        raise UserError(
            f"DigitsEvaluator: found images of shape {tuple(images.shape[1:])}, expected {Digits.image_shape}"
        )
    return images.flatten(1).double().numpy()
