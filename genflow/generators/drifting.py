"""The generator of Drifting: one pass under a guidance scale and random style codes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.generators.reverse import OnePassGenerator


class DriftingGenerator(OnePassGenerator):
    """A backbone applied once; scale 1 means no guidance.

    Args:
        network, codec, default_guidance: as in :class:`~genflow.generators.base.Generator`.
        lowest_guidance: the least scale that training has shown it.

    Raises:
        ValueError: network and codec do not fit, or ``default_guidance`` is below ``lowest_guidance``.
    """

    no_guidance = 1.0

    def __init__(self, network: Backbone, codec: Codec, default_guidance: float = 1.0, lowest_guidance: float = 1.0):
        if codec.latent_shape != network.image_shape:
            raise ValueError(f"the codec's latents are {codec.latent_shape}, the backbone takes {network.image_shape}")
        if not default_guidance >= lowest_guidance:
            raise ValueError(
                f"default_guidance is {default_guidance}, 1 means no guidance and {lowest_guidance:g} is the least"
            )
        super().__init__(network, codec, default_guidance)
        self.lowest_guidance = lowest_guidance

    def condition(self, labels: Tensor, guidance: float | Sequence[float] | Tensor | None = None) -> Condition:
        """As in the contract, with the times of one step from noise to data for a backbone that wants times."""
        condition = super().condition(labels, guidance)
        ones = condition.needed("guidance").new_ones(labels.shape)
        times = {"time": ones, "duration": ones, "interval": torch.stack([0 * ones, ones], dim=1)}
        return replace(condition, **{name: value for name, value in times.items() if name in self.network.uses})
