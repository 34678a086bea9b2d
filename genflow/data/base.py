"""The contract of datasets."""

import torch
from torch import Tensor

from genflow.draws import Draws


class Dataset(torch.utils.data.Dataset):
    """Labelled images, or stored latents, read a batch at a time.

    A subclass sets ``num_classes`` and ``image_shape`` (C, H, W), the shape of one image or latent.
    """

    kind = "dataset"
    num_classes: int
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Read the samples ``indices``.

        Args:
            indices: (B,) int64 on the CPU, each in [0, len).
            draws: one position of the training stream per row; augmentation and the sampling of posteriors
                take their random numbers from it and from nowhere else. None reads without either.

        Returns:
            ``{"images": (B, C, H, W) float32, "labels": (B,) int64}``, images in [-1, 1], or stored latents
            before the codec's ``normalize``.
        """
        raise NotImplementedError
