"""The first form of a latent cache: one file of moments, one of labels, and a description."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genflow.errors import UserError

_FILES = ("cache.json", "moments.npy", "labels.npy")


def codec_hash(codec: Mapping[str, Any]) -> str:
    """SHA-256 of a codec's description as JSON with sorted keys, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(codec, sort_keys=True).encode()).hexdigest()


class LatentFiles:
    """A folder that :func:`write_latent_cache` has written.

    ``moments.npy`` is float16 or float32 (N, views, 2C, H, W): mean, then standard deviation of every image's
    posterior; view 0 is the image, view 1 its mirror image. ``labels.npy`` holds (N,) labels, and ``cache.json`` what
    the other two contain and by which codec, and the names of the classes if they have any. The moments stay on disk.

    Args:
        data_root: the folder.
        image_shape: (C, H, W) of one latent.
        num_classes: classes; None for those of the folder.

    Raises:
        UserError: one line that names ``data_root`` and what is missing or wrong in it.
    """

    def __init__(self, data_root: str, image_shape: tuple[int, int, int], num_classes: int | None):
        self.data_root = data_root
        self.image_shape = image_shape
        self.num_classes = num_classes
        missing = [name for name in _FILES if not (Path(data_root) / name).is_file()]
        if missing:
            names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            verb = "are" if len(missing) > 1 else "is"
            raise UserError(f"data_root {data_root!r} has no latent cache: {names} {verb} missing")
        self._count = self._read_description()
        self._moments = self._open_moments()
        self.views = self._moments.shape[1]
        self.labels = self._read_labels()

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
            if value is not None and found != value:
                raise self._invalid(f"cache.json has {key} {found!r}, the recipe has {value!r}")
        self.num_classes = description.get("num_classes")
        if type(self.num_classes) is not int or self.num_classes < 1:
            raise self._invalid(f"cache.json has num_classes {self.num_classes!r}, expected a positive integer")
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
        return moments

    def _read_labels(self) -> np.ndarray:
        labels = self._open("labels.npy")
        problem = _label_problem(labels, self._count, self.num_classes)
        if problem:
            raise self._invalid(f"labels.npy {problem}")
        return labels.astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the file; a loader process opens the file itself.
        return {**self.__dict__, "_moments": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._moments = self._open_moments()

    def take(self, indices: np.ndarray, views: np.ndarray) -> np.ndarray:
        """(B,) indices and views to (B, 2C, H, W) moments; IndexError for one outside the data set."""
        return self._moments[indices, views]


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
