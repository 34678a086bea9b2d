"""The contract of datasets."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    #: Names of the classes in their order; empty where they have none.
    class_names: Sequence[str] = ()
    #: Lines for the user about what was read, and what was left out.
    notes: Sequence[str] = ()
    #: Where :func:`~genflow.data.skipped.list_skipped` lists what cannot be read and is left out; training sets it.
    skipped_file: Path | None = None

    def check_codec(self, description: Mapping[str, Any], normalize: Callable[[Tensor], Tensor]) -> None:
        """See that the recipe's codec can be used with what is stored; pictures go with any.

        Args:
            description: of the codec, see :attr:`genflow.codecs.base.Codec.description`.
            normalize: of the codec.

        Raises:
            UserError: stored latents are another codec's, or not as ``normalize`` expects them.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What a run must find again to go on exactly: numbers of samples and classes, and a hash of their names."""
        # Names of folders need not be valid text, and hold anything but this separator.
        names = "\0".join(self.class_names).encode(errors="surrogateescape")
        digest = hashlib.sha256(names).hexdigest() if self.class_names else ""
        return {"samples": len(self), "classes": self.num_classes, "class_names": digest}

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
