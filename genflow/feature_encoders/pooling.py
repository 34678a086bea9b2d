"""Features of a map: its positions, means and deviations over all of it and over windows (docs/drifting.md, D10)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genflow.layers.patches import as_tokens


def pooled_features(
    name: str,
    maps: Tensor,
    windows: Sequence[int] = (2, 4),
    positions: bool = True,
    pooled: bool = True,
    deviation_windows: Sequence[int] | None = None,
    pooled_deviation: bool | None = None,
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
        deviation_windows, pooled_deviation: for deviations, where they are not as for means.
    """
    deviation_windows = windows if deviation_windows is None else deviation_windows
    pooled_deviation = pooled if pooled_deviation is None else pooled_deviation
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    features = {name: as_tokens(maps)} if positions else {}
    if pooled or pooled_deviation:
        mean = wide.mean(dim=(2, 3), keepdim=True)
        if pooled:
            features[f"{name}_mean"] = as_tokens(mean.to(maps.dtype))
        if pooled_deviation:
            features[f"{name}_std"] = as_tokens(_root((wide - mean).square().mean(dim=(2, 3), keepdim=True)))
    for side in dict.fromkeys((*windows, *deviation_windows)):
        if maps.shape[2] % side == 0 and maps.shape[3] % side == 0:
            # Tensor.var over the axes of windows takes many times as long on a CPU.
            mean = F.avg_pool2d(wide, side)
            if side in windows:
                features[f"{name}_mean_{side}"] = as_tokens(mean.to(maps.dtype))
            if side in deviation_windows:
                centred = wide - F.interpolate(mean, scale_factor=side, mode="nearest")
                features[f"{name}_std_{side}"] = as_tokens(_root(F.avg_pool2d(centred.square(), side)))
    return features


def pooled_names(name: str, height: int, width: int, *wanted: Any, **options: Any) -> tuple[str, ...]:
    """The names that :func:`pooled_features` gives a map of ``height`` x ``width`` positions, in its order.

    Further arguments as there.
    """
    maps = torch.empty(1, 1, height, width, device="meta")
    return tuple(pooled_features(name, maps, *wanted, **options))


def _root(variance: Tensor) -> Tensor:
    return (variance + 1e-6).sqrt()
