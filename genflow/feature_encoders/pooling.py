"""Features of a map: its positions, and means and deviations over all of it and over windows (Drifting, spec 4.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled_features(
    name: str, maps: Tensor, windows: Sequence[int] = (2, 4), positions: bool = True, pooled: bool = True
) -> dict[str, Tensor]:
    """One (B, C, H, W) map to ``{name: (B, H * W, C), name_mean: (B, 1, C), name_mean_2: (B, H * W / 4, C), ...}``.

    Standard deviations are those of the population, sqrt(variance + 1e-6), at least in float32; the rest has the type
    of the map. Positions and windows are row-major.

    Args:
        name: of the map.
        maps: the map.
        windows: sides of windows that do not overlap; a side that does not divide H and W is left out.
        positions: whether the map itself is wanted.
        pooled: whether mean and standard deviation of the whole map are.
    """
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    features = {name: maps.flatten(2).mT} if positions else {}
    if pooled:
        mean = wide.mean(dim=(2, 3))
        features[f"{name}_mean"] = mean.to(maps.dtype).unsqueeze(1)
        features[f"{name}_std"] = _std(mean, wide.square().mean(dim=(2, 3))).unsqueeze(1)
    for side in windows:
        if maps.shape[2] % side == 0 and maps.shape[3] % side == 0:
            mean = F.avg_pool2d(wide, side)
            features[f"{name}_mean_{side}"] = mean.to(maps.dtype).flatten(2).mT
            features[f"{name}_std_{side}"] = _std(mean, F.avg_pool2d(wide.square(), side)).flatten(2).mT
    return features


def pooled_names(
    name: str, height: int, width: int, windows: Sequence[int] = (2, 4), positions: bool = True, pooled: bool = True
) -> tuple[str, ...]:
    """The names that :func:`pooled_features` gives a map of ``height`` x ``width`` positions, in its order."""
    empty = torch.zeros(0, 1, height, width, device="meta")
    return tuple(pooled_features(name, empty, windows, positions, pooled))


def _std(mean: Tensor, square: Tensor) -> Tensor:
    # Rounding may make the difference negative. Tensor.var takes several times as long on a CPU.
    return ((square - mean.square()).clamp(min=0) + 1e-6).sqrt()
