"""What surrounds the Inception network in the evaluation of ImageNet generators (docs/drifting.md, D18)."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import interpolate


def inception_score(logits: ArrayLike, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Inception Score (Salimans et al. 2016, arXiv 1606.03498).

    exp of the mean divergence KL(p(class | image) || p(class)), in nats, for each of ``splits`` parts of the images.

    Args:
        logits: (N, classes).
        splits: parts of equal size, or one more image in the first ones.
        seed: of the images' order, NumPy's legacy generator.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        ValueError: logits that are not finite, of another shape, or fewer than the parts.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or len(logits) < splits:
        raise ValueError(f"expected (N, classes) logits of {splits} rows or more, found {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite")
    likelihoods = np.exp(logits - logits.max(axis=1, keepdims=True))
    likelihoods /= likelihoods.sum(axis=1, keepdims=True)
    order = np.random.RandomState(seed).permutation(len(logits))
    scores = [np.exp(_mean_divergence(part)) for part in np.array_split(likelihoods[order], splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _mean_divergence(likelihoods: np.ndarray) -> float:
    ratios = np.log(likelihoods + 1e-10) - np.log(likelihoods.mean(axis=0) + 1e-10)
    return (likelihoods * ratios).sum(axis=1).mean()


def truncate_to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1], of any shape and clipped to that range, to 8 bit; truncated, not rounded (D18)."""
    return (images.clamp(0, 1) * 255).to(torch.uint8)


def inception_input(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 images to what the Inception network of 2015-12-05 sees, (B, 3, 299, 299) in about [-1, 1].

    The resize is the ordinary bilinear one with half-pixel centres, not TensorFlow 1's (D18).
    """
    return (interpolate(images.float(), size=(299, 299), mode="bilinear", align_corners=False) - 128) / 128
