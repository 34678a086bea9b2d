"""What happens to a picture between its file and the batch: transforms, one after another."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from genflow.draws import Draws
from genflow.errors import UserError, reason


class TransformSlot:
    """A transform of pictures, by class name: of GenFlow, of mmcv, or another ``mmcv.transforms.BaseTransform``.

    It takes and returns a dictionary: ``img`` (H, W, 3) uint8, red first; ``img_path``; ``gt_label``; and ``draws``,
    the :class:`~genflow.draws.Draws` of one sample, or None for reading without augmentation.
    """

    kind = "transform"


class Pipeline:
    """Transforms that a picture goes through, the same for any number of processes and after a resume.

    Transforms that are not GenFlow's may draw from the global generators of Python, NumPy and torch. These are seeded
    before each picture, and afterwards are as they were.

    Args:
        transforms: objects as :class:`TransformSlot` describes.
        shape: (H, W, C) of the result.
    """

    def __init__(self, transforms: Sequence[Any], shape: tuple[int, int, int]):
        self.transforms = list(transforms)
        self.shape = shape
        self._foreign = any(type(transform).__module__.split(".")[0] != "genflow" for transform in transforms)

    def __str__(self) -> str:
        return f"pipeline [{', '.join(type(transform).__name__ for transform in self.transforms)}]"

    def __call__(self, pixels: np.ndarray, path: str, label: int, index: int, draws: Draws | None) -> np.ndarray:
        """One picture, transformed.

        Args:
            pixels: (H, W, 3) uint8.
            path, label: of the picture.
            index: of the picture in its data set, which seeds the global generators where there are no ``draws``.
            draws: of one sample, or None.

        Returns:
            uint8 of :attr:`shape`.

        Raises:
            UserError: a transform fails, or what they make together has another shape or type.
        """
        results: Any = {"img": pixels, "img_path": path, "gt_label": label, "draws": draws}
        seed, position = (0, index) if draws is None else (draws.seed, int(draws.positions[0]))
        with _seeded(seed, position) if self._foreign else nullcontext():
            for number, transform in enumerate(self.transforms):
                try:
                    results = transform(results)
                    pixels = results["img"]
                except Exception as error:  # whatever a component does
                    place = f"pipeline.{number}: {type(transform).__name__}"
                    raise UserError(f"{path}: {place}: {reason(error)}") from error
        if pixels.ndim == 2:  # OpenCV takes a single channel away
            pixels = pixels[..., None]
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            made, wanted = (" x ".join(map(str, shape)) for shape in (pixels.shape, self.shape))
            hint = "; ToGrey makes one channel" if pixels.shape[:2] == self.shape[:2] and self.shape[2] == 1 else ""
            raise UserError(f"{path}: {self} makes {made} {pixels.dtype}, expected {wanted} uint8{hint}")
        return np.ascontiguousarray(pixels)


@contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Seed the global generators from two numbers, and put them back afterwards."""
    # The default generator alone: torch.manual_seed would set those of GPUs too.
    kept = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    value = int.from_bytes(hashlib.sha256(f"{seed % 2**64} {position}".encode()).digest()[:4], "little")
    random.seed(value)
    np.random.seed(value)
    torch.default_generator.manual_seed(value)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.default_generator.set_state(kept[2])
