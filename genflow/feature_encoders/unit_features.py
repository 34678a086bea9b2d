"""Features of unit length."""

import torch
from torch import Tensor

from genflow.layers.patches import as_tokens


def unit_features(maps: Tensor) -> Tensor:
    """(B, C, H, W) maps to (B, H * W, C) features, at least in float32, each divided by its length over channels.

    The small number lies under the root: beside it, the slope were infinite where all channels are 0.
    """
    tokens = as_tokens(maps)
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens / (tokens.square().sum(dim=2, keepdim=True) + 1e-20).sqrt()
