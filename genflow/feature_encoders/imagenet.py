"""What networks that were trained on ImageNet expect of images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Normalization(nn.Module):
    """(B, 3, H, W) images in [-1, 1], not clipped, to about zero mean and unit variance over ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean.to(images)) / self.std.to(images)


def resize(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side, side): bilinear between the centres of pixels, antialiased."""
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
