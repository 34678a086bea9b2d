"""The generator of Drifting: one pass under a scale of at least 1 and random style codes."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.generators.reverse import OnePassGenerator


class DriftingGenerator(OnePassGenerator):
    """A backbone applied once; scale 1 means no guidance.

    Args:
        network, codec, default_guidance: as in :class:`~genflow.generators.base.Generator`.

    Raises:
        ValueError: network and codec do not fit, or ``default_guidance`` is below 1.
    """

    lowest_guidance = 1.0

    def __init__(self, network: Backbone, codec: Codec, default_guidance: float = 1.0):
        if codec.latent_shape != network.image_shape:
            raise ValueError(f"the codec's latents are {codec.latent_shape}, the backbone takes {network.image_shape}")
        if not default_guidance >= 1:
            raise ValueError(f"default_guidance is {default_guidance}, 1 means no guidance and is the least")
        super().__init__(network, codec, default_guidance)

    def condition(self, labels: Tensor, guidance: float | Sequence[float] | Tensor | None = None) -> Condition:
        """As in the contract, with the times of one step from noise to data for a backbone that wants times."""
        condition = super().condition(labels, guidance)
        ones = condition.guidance.new_ones(len(labels))
        times = {"time": ones, "duration": ones, "interval": ones.unsqueeze(1) * ones.new_tensor([0.0, 1.0])}
        return replace(condition, **{name: value for name, value in times.items() if name in self.network.uses})
