"""Latents of a codec, computed ahead of training and read from a folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.data.latent_files import LatentFiles, codec_hash
from genflow.data.packed import INDEX, PackedRows, is_packed
from genflow.draws import Draws
from genflow.errors import UserError, shown
from genflow.ranges import ImageShape, LocalPath, Positive
from genflow.registry import DATASETS

#: Latents whose statistics are looked at, and how far from 0 and 1 they may be.
_CHECKED, _TOLERANCE = 1000, 0.25


@DATASETS.register_module()
class LatentCache(Dataset):
    """Posteriors of a codec over a data set, as ``tools/prepare_data.py latents`` packs them.

    They are means and standard deviations of pictures and of their mirror images, which cannot be had by mirroring the
    latents, before the codec's ``normalize``; they stay on the disk. Folders in the form of before,
    :class:`~genflow.data.latent_files.LatentFiles`, are read as well.

    Args:
        data_root: the folder.
        latent_shape: (C, H, W) of one latent.
        num_classes: classes; None takes their number from the folder.
        flip: take the mirror image with probability 1/2.

    Raises:
        UserError: one line that names ``data_root`` and what is missing or wrong in it.
    """

    def __init__(
        self,
        data_root: LocalPath,
        latent_shape: ImageShape,
        num_classes: Positive | None = None,
        flip: bool = True,
    ):
        self.data_root = data_root
        self.image_shape = tuple(latent_shape)
        self.flip = flip
        self._moments: LatentFiles | PackedLatents
        if is_packed(Path(data_root)):
            self._moments = PackedLatents(data_root, self.image_shape, num_classes)
        else:
            self._moments = LatentFiles(data_root, self.image_shape, num_classes)
        self.num_classes, self.class_names = self._moments.num_classes, self._moments.class_names
        #: Description of the codec that made the latents, and its hash.
        self.codec, self.codec_hash = self._moments.codec, self._moments.codec_hash
        if flip and self._moments.views == 1:
            problem = "moments.npy has no mirror images, which flip needs; set flip to false"
            raise UserError(f"data_root {data_root!r} has no valid latent cache: {problem}")
        self._labels = torch.from_numpy(self._moments.labels)

    def check_codec(self, description: Mapping[str, Any], normalize: Callable[[Tensor], Tensor]) -> None:
        """See that the recipe's codec made the latents, and that they are not scaled yet.

        For the statistics a thousand latents are looked at, evenly spread, since classes may follow each other.
        """
        for key in sorted(self.codec.keys() | description.keys()):
            found, expected = (made.get(key, "nothing") for made in (self.codec, description))
            if found != expected and None not in (found, expected):
                hashes = f"codec_hash {self.codec_hash[:12]} there, {codec_hash(description)[:12]} here"
                values = f"its codec has {key} {shown(found)}, the recipe's has {shown(expected)}"
                raise UserError(f"data_root {self.data_root!r} holds latents of another codec: {values} ({hashes})")
        checked = min(len(self), _CHECKED)
        indices = torch.arange(checked) * len(self) // checked
        latents = normalize(self.batch(indices, Draws(0, indices))["images"])
        mean, deviation = float(latents.mean()), float(latents.std())
        if not (abs(mean) <= _TOLERANCE and abs(deviation - 1) <= _TOLERANCE):
            found = f"{checked} latents have mean {mean:.3g} and standard deviation {deviation:.3g}"
            raise UserError(
                f"data_root {self.data_root!r}: {found} after the codec's normalize, expected 0 and 1 within "
                f"{_TOLERANCE}: they are scaled already, or the codec is told other statistics than theirs (SDVAE: "
                "latent_mean, latent_std)"
            )

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Sample the posteriors of ``indices``; without ``draws`` return the means of the images as they are.

        Raises:
            IndexError: an index outside the data set.
        """
        views = torch.zeros_like(indices)
        if self.flip and draws is not None:
            views = (draws.uniform("flip") < 0.5).long()
        moments = torch.from_numpy(np.array(self._moments.take(indices.numpy(), views.numpy()))).float()
        mean, std = moments.chunk(2, dim=1)
        images = mean if draws is None else mean + std * draws.normal("posterior", self.image_shape)
        return {"images": images, "labels": self._labels[indices]}


class PackedLatents(PackedRows):
    """Latents in the packed format.

    Args:
        data_root: the folder.
        image_shape: (C, H, W) of one latent.
        num_classes: classes; None for those of the folder.

    Raises:
        UserError: one line that names ``data_root`` and what is missing or wrong in it.
    """

    views = 2

    def __init__(self, data_root: str, image_shape: tuple[int, int, int], num_classes: int | None):
        super().__init__(data_root, "latents")
        index, (channels, height, width) = self.index, image_shape
        invalid = f"data_root {data_root!r} has no valid latent cache: {INDEX}"
        if index.shape != (self.views, 2 * channels, height, width):
            found = [index.shape[1] // 2, *index.shape[2:]]
            raise UserError(f"{invalid} has latent_shape {found}, the recipe has {list(image_shape)}")
        if num_classes not in (None, index.num_classes):
            raise UserError(f"{invalid} has num_classes {index.num_classes}, the recipe has {num_classes}")
        self.num_classes, self.class_names = index.num_classes, list(index.class_names)
        self.codec, self.codec_hash = index.plan.get("codec"), index.plan.get("codec_hash")
        if not isinstance(self.codec, dict) or self.codec_hash != codec_hash(self.codec):
            raise UserError(f"{invalid} has a codec_hash that is not the hash of its codec")
