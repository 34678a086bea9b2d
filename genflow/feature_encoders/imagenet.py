"""What networks that were trained on ImageNet expect of images."""

import torch.nn.functional as F
from torch import Tensor

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """(B, 3, H, W) images in [-1, 1], not clipped, to about zero mean and unit variance over ImageNet."""
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (_MEAN, _STD))
    return ((images + 1) / 2 - mean) / std


def resize(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side, side): bilinear between the centres of pixels, antialiased."""
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
