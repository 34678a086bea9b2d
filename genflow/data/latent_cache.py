"""Latents of a codec, computed ahead of training and read from a folder."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.draws import Draws
from genflow.errors import UserError, shown
from genflow.ranges import ImageShape, LocalPath, Positive
from genflow.registry import DATASETS

_FILES = ("cache.json", "moments.npy", "labels.npy")
#: Latents whose statistics are looked at, and how far from 0 and 1 they may be.
_CHECKED, _TOLERANCE = 1000, 0.25


def codec_hash(codec: Mapping[str, Any]) -> str:
    """SHA-256 of a codec's description as JSON with sorted keys, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(codec, sort_keys=True).encode()).hexdigest()


@DATASETS.register_module()
class LatentCache(Dataset):
    """Posteriors of a codec over a data set, from a folder that :func:`write_latent_cache` has written.

    The folder holds ``moments.npy``, float16 or float32 (N, views, 2C, H, W): mean, then standard deviation
    of every image's posterior, before the codec's ``normalize``; view 0 is the image, view 1 its mirror
    image, which cannot be had by mirroring the latent. ``labels.npy`` holds (N,) labels, and ``cache.json``
    what the other two contain and by which codec, and the names of the classes if they have any. The moments stay on
    disk.

    Args:
        data_root: the folder.
        latent_shape: (C, H, W) of one latent.
        num_classes: classes.
        flip: take the mirror image with probability 1/2.

    Raises:
        UserError: one line that names ``data_root`` and what is missing or wrong in it.
    """

    def __init__(
        self,
        data_root: LocalPath,
        latent_shape: ImageShape,
        num_classes: Positive = 1000,
        flip: bool = True,
    ):
        self.data_root = data_root
        self.image_shape = tuple(latent_shape)
        self.num_classes = num_classes
        self.flip = flip
        missing = [name for name in _FILES if not (Path(data_root) / name).is_file()]
        if missing:
            names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            verb = "are" if len(missing) > 1 else "is"
            raise UserError(f"data_root {data_root!r} has no latent cache: {names} {verb} missing")
        self._count = self._read_description()
        self._moments = self._open_moments()
        self._labels = self._read_labels()

    def _invalid(self, problem: object) -> UserError:
        line = " ".join(str(problem).split())
        return UserError(f"data_root {self.data_root!r} has no valid latent cache: {line}")

    def _read_description(self) -> int:
        try:
            description = json.loads((Path(self.data_root) / "cache.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._invalid(f"cache.json is not readable: {error}") from None
        if not isinstance(description, dict):
            raise self._invalid("cache.json is not a JSON object")
        expected = {"latent_shape": list(self.image_shape), "num_classes": self.num_classes}
        for key, value in expected.items():
            found = description.get(key)
            if found != value:
                raise self._invalid(f"cache.json has {key} {found!r}, the recipe has {value!r}")
        #: Description of the codec that made the latents, and its :func:`codec_hash`.
        self.codec = description.get("codec")
        self.codec_hash = description.get("codec_hash")
        if not isinstance(self.codec, dict) or self.codec_hash != codec_hash(self.codec):
            raise self._invalid("cache.json has a codec_hash that is not the hash of its codec")
        self.class_names = description.get("class_names", [])
        if not _are_names(self.class_names, self.num_classes):
            raise self._invalid(f"cache.json has class_names that are not {self.num_classes} different names, or none")
        count = description.get("count")
        if type(count) is not int or count < 1:
            raise self._invalid(f"cache.json has count {count!r}, expected a positive integer")
        return count

    def _open(self, name: str) -> np.ndarray:
        try:
            return np.lib.format.open_memmap(Path(self.data_root) / name, mode="r")
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise self._invalid(f"{name} is truncated or not an array: {error}") from None

    def _open_moments(self) -> np.ndarray:
        moments = self._open("moments.npy")
        channels, height, width = self.image_shape
        shapes = [(self._count, views, 2 * channels, height, width) for views in (1, 2)]
        if moments.dtype not in (np.float16, np.float32):
            raise self._invalid(f"moments.npy has type {moments.dtype}, expected float16 or float32")
        if moments.shape not in shapes:
            raise self._invalid(f"moments.npy has shape {moments.shape}, expected {shapes[0]} or {shapes[1]}")
        if self.flip and moments.shape[1] == 1:
            raise self._invalid("moments.npy has no mirror images, which flip needs; set flip to false")
        return moments

    def _read_labels(self) -> Tensor:
        labels = self._open("labels.npy")
        problem = _label_problem(labels, self._count, self.num_classes)
        if problem:
            raise self._invalid(f"labels.npy {problem}")
        return torch.from_numpy(labels.astype(np.int64))

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
        checked = min(self._count, _CHECKED)
        indices = torch.arange(checked) * self._count // checked
        latents = normalize(self.batch(indices, Draws(0, indices))["images"])
        mean, deviation = float(latents.mean()), float(latents.std())
        if not (abs(mean) <= _TOLERANCE and abs(deviation - 1) <= _TOLERANCE):
            found = f"{checked} latents have mean {mean:.3g} and standard deviation {deviation:.3g}"
            raise UserError(
                f"data_root {self.data_root!r}: {found} after the codec's normalize, expected 0 and 1 within "
                f"{_TOLERANCE}: they are scaled already, or the codec is told other statistics than theirs (SDVAE: "
                "latent_mean, latent_std)"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the file; a loader process opens the file itself.
        return {**self.__dict__, "_moments": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._moments = self._open_moments()

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Sample the posteriors of ``indices``; without ``draws`` return the means of the images as they are.

        Raises:
            IndexError: an index outside the data set.
        """
        views = torch.zeros_like(indices)
        if self.flip and draws is not None:
            views = (draws.uniform("flip") < 0.5).long()
        moments = torch.from_numpy(np.array(self._moments[indices.numpy(), views.numpy()])).float()
        mean, std = moments.chunk(2, dim=1)
        images = mean if draws is None else mean + std * draws.normal("posterior", self.image_shape)
        return {"images": images, "labels": self._labels[indices]}


def _are_names(names: Any, num_classes: int) -> bool:
    """Whether there is a name for each class, or none at all."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    return not names or len(set(names)) == len(names) == num_classes


def _label_problem(labels: np.ndarray, count: int, num_classes: int) -> str:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        return f"has shape {labels.shape} and type {labels.dtype}, expected ({count},) integers"
    if labels.min() < 0 or labels.max() >= num_classes:
        return f"has labels from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}"
    return ""


def write_latent_cache(
    data_root: str | Path,
    moments: np.ndarray,
    labels: np.ndarray,
    codec: Mapping[str, Any],
    num_classes: int = 1000,
    class_names: Sequence[str] = (),
) -> None:
    """Write the folder that :class:`LatentCache` reads, replacing an older one.

    Args:
        data_root: the folder, made if need be.
        moments: (N, views, 2C, H, W) float16 or float32, means then standard deviations; may be a memory map.
        labels: (N,) integers in [0, num_classes).
        codec: :attr:`~genflow.codecs.base.Codec.description` of the codec that made the moments.
        num_classes: classes.
        class_names: their names in their order, if they have any.

    Raises:
        ValueError: arrays that :class:`LatentCache` would refuse; nothing has been written then.
    """
    count, views, channels, height, width = moments.shape if moments.ndim == 5 else (0,) * 5
    if count < 1 or views not in (1, 2) or channels % 2 or moments.dtype not in (np.float16, np.float32):
        raise ValueError(
            f"moments have shape {moments.shape} and type {moments.dtype}, "
            "expected (N, 1 or 2, 2C, H, W) of float16 or float32"
        )
    problem = _label_problem(labels, count, num_classes)
    if problem:
        raise ValueError(f"the array of labels {problem}")
    if not _are_names(list(class_names), num_classes):
        raise ValueError(f"class_names are not {num_classes} different names, or none")
    description = {
        "count": count,
        "latent_shape": [channels // 2, height, width],
        "num_classes": num_classes,
        "codec": dict(codec),
        "codec_hash": codec_hash(codec),
        "class_names": list(class_names),
    }
    text = json.dumps(description, indent=2)
    folder = Path(data_root)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("moments.npy", moments), ("labels.npy", labels)):
        with open(folder / f"{name}.partial", "wb") as file:
            np.save(file, array, allow_pickle=False)
    (folder / "cache.json.partial").write_text(text + "\n", encoding="utf-8")
    # A folder without cache.json is no cache, so an interruption never leaves a mixture of two.
    (folder / "cache.json").unlink(missing_ok=True)
    for name in ("moments.npy", "labels.npy", "cache.json"):
        os.replace(folder / f"{name}.partial", folder / name)
