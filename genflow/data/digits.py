"""The 8x8 digits that come with scikit-learn."""

from typing import Literal

import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.draws import Draws
from genflow.registry import DATASETS


@DATASETS.register_module()
class Digits(Dataset):
    """One half of the 1,797 handwritten digits bundled with scikit-learn (UCI, Alpaydin and Kaynak 1998).

    Grey levels 0..16 become x / 8 - 1. The two halves are stratified by label and always the same; there is
    no augmentation.

    Args:
        split: ``train`` (898 images) or ``test`` (899).
    """

    num_classes = 10
    image_shape = (1, 8, 8)
    class_names = tuple("0123456789")

    def __init__(self, split: Literal["train", "test"] = "train"):
        # Imported here so that `import genflow` stays light.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        train, test = train_test_split(range(len(labels)), test_size=0.5, stratify=labels, random_state=0)
        chosen = {"train": train, "test": test}[split]
        #: (N, 1, 8, 8) float32 in [-1, 1].
        self.images = torch.tensor(pixels[chosen] / 8 - 1, dtype=torch.float32).view(-1, *self.image_shape)
        #: (N,) int64 in [0, 10).
        self.labels = torch.tensor(labels[chosen], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        return {"images": self.images[indices], "labels": self.labels[indices]}
