"""Figures for generators of :class:`~genflow.data.digits.Digits`."""

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genflow.data.digits import Digits
from genflow.errors import UserError
from genflow.evaluation.base import ALONE, Evaluator, Share
from genflow.evaluation.metrics import frechet_distance, precision_recall
from genflow.evaluation.resampling import draw_again
from genflow.generators.base import Generator
from genflow.ranges import Positive, Range
from genflow.registry import EVALUATORS

#: Neighbours of precision and recall.
_NEIGHBOURS = 3


@EVALUATORS.register_module()
class DigitsEvaluator(Evaluator):
    """Accuracy, Fréchet distance, precision and recall of generated digits, in their 64 pixels.

    ``accuracy`` is the share of images to which a support vector classifier (``gamma`` 0.02, ``C`` 10),
    fitted to the training half, gives the label asked for; ``fd``, ``precision`` and ``recall`` (k = 3)
    compare the images with the held-out half.

    Class k of a generator is the digit k. One with fewer classes than ten is measured on its digits, and compared with
    real ones of these; one without classes on all ten, without ``accuracy``.

    Args:
        per_class: images of each digit; of fewer classes correspondingly more, so that there are always as many.
        batch_size: images generated at a time; does not change the figures.
    """

    has_error_bars = True

    def __init__(self, per_class: Annotated[int, Range(low=1, high=10_000)] = 100, batch_size: Positive = 250):
        self.num_samples = Digits.num_classes * per_class
        self.batch_size = batch_size
        self._generated: tuple[Tensor, Tensor, int] | None = None

    def check(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        if tuple(image_shape) != Digits.image_shape:
            found = f"found images of shape {tuple(image_shape)}"
            raise UserError(f"DigitsEvaluator: {found}, expected {Digits.image_shape}, as digits have")
        if num_classes > Digits.num_classes:
            expected = f"expected at most {Digits.num_classes}, class k being the digit k"
            raise UserError(f"DigitsEvaluator: found a generator of {num_classes} classes, {expected}")

    def evaluate(
        self,
        generator: Generator,
        seed: int = 0,
        guidance: float | None = None,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] | None = None,
        share: Share = ALONE,
    ) -> dict[str, float]:
        """As :meth:`Evaluator.evaluate`; image i is asked to show digit i % 10, or i % classes where there are fewer.

        Returns:
            ``{"accuracy", "fd", "precision", "recall"}``, without ``accuracy`` where there are no classes.

        Raises:
            UserError: the generator has more than ten classes or makes images of another shape than (1, 8, 8), or not
                finite ones.
        """
        classes = generator.num_classes
        self.check(classes, Digits.image_shape)  # the shape shows below
        labels = torch.arange(self.num_samples) % max(classes, 1)
        parts = []
        for first in range(0, self.num_samples, self.batch_size):
            asked = labels[first : first + self.batch_size].to(device)
            parts.append(generator.sample(asked, seed, guidance, first).cpu())
            if progress is not None:
                progress(first + len(asked), self.num_samples)
        images = torch.cat(parts)
        self._generated = images, labels, classes
        figures = self._distances(_pixels(images), classes)
        return {"accuracy": self.accuracy(images, labels), **figures} if classes else figures

    def bootstrap(self, repeats: int, seed: int = 0) -> dict[str, float]:
        """As :meth:`Evaluator.bootstrap`, of ``fd``, and of ``accuracy`` where it is there."""
        images, labels, classes = self._generated
        draws = torch.Generator().manual_seed(seed)
        real = _pixels(_first_classes(self._test, classes)[0])
        found: dict[str, list[float]] = {}
        for _ in range(repeats):
            rows = draw_again(labels, labels, draws)
            found.setdefault("fd", []).append(frechet_distance(real, _pixels(images[rows])))
            if classes:
                found.setdefault("accuracy", []).append(self.accuracy(images[rows], labels[rows]))
        return {name: float(np.std(values, ddof=1)) for name, values in found.items()}

    def reference(self, num_classes: int = 0) -> dict[str, float]:
        """The figures of real digits: accuracy on the held-out half, the training half as if generated."""
        test, train = (_first_classes(half, num_classes) for half in (self._test, self._train))
        return {"accuracy": self.accuracy(*test), **self._distances(_pixels(train[0]), num_classes)}

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

    def _distances(self, pixels: NDArray[np.float64], classes: int) -> dict[str, float]:
        real = _pixels(_first_classes(self._test, classes)[0])
        precision, recall = precision_recall(real, pixels, _NEIGHBOURS)
        return {"fd": frechet_distance(real, pixels), "precision": precision, "recall": recall}


def _first_classes(half: Digits, classes: int) -> tuple[Tensor, Tensor]:
    """Images and labels of the digits below ``classes``; of all for 0."""
    chosen = half.labels < (classes or Digits.num_classes)
    return half.images[chosen], half.labels[chosen]


def _pixels(images: Tensor) -> NDArray[np.float64]:
    """(N, 1, 8, 8) images to (N, 64) float64."""
    if images.shape[1:] != Digits.image_shape:
        raise UserError(
            f"DigitsEvaluator: found images of shape {tuple(images.shape[1:])}, expected {Digits.image_shape}"
        )
    return images.flatten(1).double().numpy()
