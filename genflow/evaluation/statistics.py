"""Files of statistics: mean and covariance of a data set's features, as FIDs are measured against."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.errors import UserError, shown
from genflow.evaluation.base import ALONE, Share
from genflow.evaluation.conventions import Convention
from genflow.evaluation.extraction import Images, Progress, extract
from genflow.evaluation.moments import Gaussian
from genflow.feature_encoders.base import FeatureEncoder
from genflow.processes import decided
from genflow.weights import file_digest, write_atomically

#: Names of mean and covariance in published files: ADM's and torch-fidelity's, and those of some JAX evaluations.
_NAMES = (("mu", "sigma"), ("mean", "cov"), ("ref_mu", "ref_sigma"))
#: How far a covariance may be from its transpose, as a share of its largest entry.
_ASYMMETRY = 1e-3


@dataclass(frozen=True)
class Statistics:
    """A file of statistics.

    Args:
        gaussian: mean and covariance.
        facts: what the file says of itself: extractor, its weights' hash, convention, source, count.
        sha256: of the file.
    """

    gaussian: Gaussian
    facts: Mapping[str, Any]
    sha256: str


def read_statistics(path: str | Path, width: int | None = None) -> Statistics:
    """Read mean and covariance, of ours or a published ``.npz``.

    Args:
        path: the file.
        width: of the extractor's features; None accepts any.

    Raises:
        UserError: it is no such file, is damaged, or of another extractor's width.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of statistics")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = next((pair for pair in _NAMES if set(pair) <= set(archive.files)), None)
            if names is None:
                raise ValueError(f"it has {', '.join(archive.files) or 'nothing'}, expected mu and sigma")
            mean, covariance = (np.asarray(archive[name], dtype=np.float64) for name in names)
            facts = json.loads(str(archive["facts"])) if "facts" in archive.files else {}
    except Exception as error:  # numpy and zipfile fail in many ways
        raise UserError(f"{path}: not a file of statistics: {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: found shapes {mean.shape} and {covariance.shape}, expected (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mean or covariance is not finite")
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * max(np.abs(covariance).max(), 1e-30):
        raise UserError(f"{path}: its covariance is not symmetric")
    if width is not None and len(mean) != width:
        raise UserError(f"{path}: has {len(mean)} features, the extractor {width}")
    return Statistics(Gaussian(mean, covariance), facts if isinstance(facts, dict) else {}, file_digest(path))


def check_facts(statistics: Statistics, path: str, expected: Mapping[str, Any]) -> None:
    """See that statistics are of the extractor, weights and images that they are to be compared with.

    Published files say nothing of this and are taken at their word.

    Raises:
        UserError: they are not.
    """
    for name, value in expected.items():
        found = statistics.facts.get(name, value)
        if found != value:
            raise UserError(f"{path}: its {name} is {shown(found)}, that of this evaluation {shown(value)}")


def encoder_digest(encoder: FeatureEncoder) -> str:
    """SHA-256 of an encoder's weights and buffers, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_statistics(
    dataset: Dataset,
    encoder: FeatureEncoder,
    convention: Convention,
    out: Path,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    share: Share = ALONE,
) -> Statistics:
    """Write mean and covariance of the features of a data set's pictures.

    Args:
        dataset: of pictures.
        encoder: the extractor, with ``pooled`` features.
        convention: how images become bytes.
        out: the ``.npz`` file to write.
        batch_size: pictures at once; it does not change the statistics.
        device: where to encode.
        progress: called with pictures so far and in all.
        share: this process's part; the first one writes.

    Raises:
        UserError: something lies there, or the pictures cannot be read.
    """
    if out.exists() or out.suffix != ".npz":
        found = "is there already" if out.exists() else "has another ending"
        raise UserError(f"{out}: {found}, expected a new file ending in .npz")
    encoder.to(device).eval()
    pictures = real_pictures(dataset, convention, device)
    gaussian = extract({"": encoder}, pictures, len(dataset), batch_size, 0, share, progress)[""].gaussian
    facts = {**facts_of(encoder, convention, dataset.image_shape), "count": len(dataset), "data": dataset.fingerprint()}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, mu=gaussian.mean, sigma=gaussian.covariance, facts=np.array(json.dumps(facts)))

    decided(lambda: write_atomically(out, write))
    return read_statistics(out)


def real_pictures(dataset: Dataset, convention: Convention, device: torch.device | str) -> Images:
    """Reads a data set's pictures, without augmentation, as bytes on ``device``, for :func:`extract`."""

    def read(first: int, count: int) -> tuple[Tensor, Tensor]:
        batch = dataset.batch(torch.arange(first, first + count), None)
        return convention.to_bytes(batch["images"]).to(device), batch["labels"]

    return read


def facts_of(encoder: FeatureEncoder, convention: Convention, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """What statistics and generated images must have in common."""
    return {
        "extractor": type(encoder).__name__,
        "settings": dict(encoder.description),
        "weights": encoder_digest(encoder),
        "rounding": convention.rounding,
        "image_shape": list(image_shape),
    }
