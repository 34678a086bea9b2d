"""The training pictures that are nearest to some images: a generator that copies shows it here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.errors import UserError

#: Pictures read at once.
_BATCH = 512
#: Grey levels of half the range of images, [-1, 1].
_LEVELS = 127.5


@dataclass(frozen=True)
class Nearest:
    """What is nearest to each of some images.

    Args:
        distances: (B,) root mean square of the difference over all values, in grey levels of 0 to 255.
        pictures: (B, C, H, W) in [-1, 1], mirrored where that is nearer.
    """

    distances: Tensor
    pictures: Tensor


def nearest_pictures(
    images: Tensor,
    dataset: Dataset,
    but: Tensor | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Nearest:
    """Look through a data set, and the mirror images of its pictures, for those that are nearest in their pixels.

    Args:
        images: (B, C, H, W) in [-1, 1].
        dataset: of pictures of that shape.
        but: (B,) indices of pictures that do not count, one for each image; None counts all.
        progress: called with pictures so far and in all.

    Raises:
        UserError: the data set holds something else, as latents.
    """
    if tuple(dataset.image_shape) != tuple(images.shape[1:]):
        found = f"found {tuple(dataset.image_shape)}, the images are {tuple(images.shape[1:])}"
        raise UserError(f"the training data hold no pictures to compare with: {found}")
    distances, pictures = torch.full((len(images),), torch.inf), torch.zeros_like(images)
    for first in range(0, len(dataset), _BATCH):
        indices = torch.arange(first, min(first + _BATCH, len(dataset)))
        batch = dataset.batch(indices, None)["images"]
        for shown in (batch, batch.flip(3)):
            apart = torch.cdist(images.flatten(1), shown.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
            if but is not None:
                apart[but[:, None] == indices] = torch.inf
            least, places = apart.min(dim=1)
            nearer = least < distances
            distances[nearer], pictures[nearer] = least[nearer], shown[places[nearer]]
        progress(int(indices[-1]) + 1, len(dataset))
    return Nearest(distances * _LEVELS / images[0].numel() ** 0.5, pictures)


def usual_distance(dataset: Dataset, count: int = 100) -> float:
    """How far a training picture is from the nearest other one: the median over ``count`` of them, evenly spread.

    Raises:
        UserError: there is no other.
    """
    if len(dataset) < 2:
        raise UserError("the training data hold one picture only, there is no distance between them")
    chosen = torch.arange(min(count, len(dataset))) * len(dataset) // min(count, len(dataset))
    return float(nearest_pictures(dataset.batch(chosen, None)["images"], dataset, chosen).distances.median())
