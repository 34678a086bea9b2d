"""Generators of reverse models: one pass, or two that are guided."""

from dataclasses import replace

import torch
from torch import Tensor

from genflow.backbones.base import Backbone, GroupedBackbone
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.flow_teachers.base import FlowTeacher
from genflow.generators.base import NetworkGenerator


class OnePassGenerator(NetworkGenerator):
    """A backbone applied once; scale 0 means no guidance.

    Args:
        network, codec, default_guidance: as in :class:`~genflow.generators.base.Generator`.
        denoiser: a flow whose score step removes the noise that the backbone's samples hold; None for samples
            that are clean already. It is not counted, nor made faster.
        noise_std: standard deviation of that noise.
    """

    lowest_guidance = 0.0
    network: Backbone
    #: Of the backbone, one after the other in effect.
    passes: int = 1

    def __init__(
        self,
        network: Backbone,
        codec: Codec,
        default_guidance: float = 0.0,
        denoiser: FlowTeacher | None = None,
        noise_std: float = 0.0,
    ):
        super().__init__(network, codec, default_guidance)
        self.denoiser = denoiser
        self.noise_std = noise_std
        if isinstance(network, GroupedBackbone):
            self.guided_groups = network.groups

    @property
    def nfe(self) -> int:
        """The passes, and one for the denoiser's score step."""
        return self.passes + (0 if self.denoiser is None else 1)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        samples = self.evaluate(noise, condition)
        if self.denoiser is None:
            return samples
        return self.denoiser.denoise(samples, condition.labels if self.denoiser.num_classes else None, self.noise_std)

    def evaluate(self, noise: Tensor, condition: Condition) -> Tensor:
        """The backbone's pass."""
        if self._precision == torch.float32:
            return self._run(noise, condition)
        return self._run(noise.to(self._precision), condition).float()

    def _evaluate(self, noise: Tensor, condition: Condition) -> Tensor:
        return self.network(noise, condition)["main"]


class TwoPassGenerator(OnePassGenerator):
    """Ordinary guidance: the backbone with and without class, (1 + w) * labelled - w * null (docs/biflow.md, B16).

    The two branches run in one batch. At scale 0 everywhere the null branch is left out.

    Args:
        network, codec, default_guidance, denoiser, noise_std: as in :class:`OnePassGenerator`.
        per_group: guide the state after every group of a grouped backbone, both branches on the same guided
            input; otherwise the sample.

    Raises:
        ValueError: the backbone has no groups to guide.
    """

    passes = 2

    def __init__(
        self,
        network: Backbone,
        codec: Codec,
        default_guidance: float = 0.0,
        denoiser: FlowTeacher | None = None,
        noise_std: float = 0.0,
        per_group: bool = False,
    ):
        super().__init__(network, codec, default_guidance, denoiser, noise_std)
        self.per_group = per_group
        self.guided_groups = self._grouped.groups if per_group else 1

    @property
    def _grouped(self) -> GroupedBackbone:
        if not isinstance(self.network, GroupedBackbone):
            raise ValueError(f"{type(self.network).__name__} has no groups to guide")
        return self.network

    def _evaluate(self, noise: Tensor, condition: Condition) -> Tensor:
        scale = condition.needed("guidance")
        plain = replace(condition, guidance=torch.zeros_like(condition.needed("labels"), dtype=noise.dtype))
        if not noise.is_meta and not torch.compiler.is_exporting() and not scale.any():
            return self.network(noise, plain)["main"]
        both = plain.joined(plain.unlabelled(self.num_classes))
        if not self.per_group:
            return _extrapolate(self.network(noise.repeat(2, 1, 1, 1), both)["main"], scale)
        network = self._grouped
        state = network.embed(noise)
        for index in reversed(range(network.groups)):
            branches = network.group(index, state.repeat(2, 1, 1), both)
            state = _extrapolate(branches, condition.of_group(index).needed("guidance"))
        return network.finish(state, plain)


def _extrapolate(branches: Tensor, scale: Tensor) -> Tensor:
    """(2B, ...) labelled rows, then null rows, and (B,) scales to (B, ...) guided rows."""
    labelled, null = branches.unflatten(0, (2, -1))  # in chunks their number would not be known in a graph
    scale = scale.view(-1, *[1] * (labelled.dim() - 1)).to(labelled.dtype)
    return (1 + scale) * labelled - scale * null
