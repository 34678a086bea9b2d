"""Affine coupling (RealNVP, arXiv 1605.08803): the simplest flow teacher, for vectors."""

import itertools
from typing import Annotated

import torch
from torch import Tensor, nn

from genflow.flow_teachers.base import FlowTeacher, Trajectory
from genflow.layers.precision import full_precision
from genflow.ranges import Above0, Depth, Positive, Range
from genflow.registry import FLOW_TEACHERS


class CouplingBlock(nn.Module):
    """v = (u - shift) * exp(-log_scale) for one half of a vector, both predicted from the other half.

    Args:
        given: entries of the half that conditions.
        changed: entries of the half that is transformed.
        width: of the network's hidden layers.
        layers: their number.
        bound: limit of the log-scales; None for none.
    """

    def __init__(self, given: int, changed: int, width: int, layers: int, bound: float | None):
        super().__init__()
        self.bound = bound
        widths = [given, *[width] * layers]
        hidden = [part for sizes in itertools.pairwise(widths) for part in (nn.Linear(*sizes), nn.SiLU())]
        out = nn.Linear(width, 2 * changed)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        self.network = nn.Sequential(*hidden, out)

    def affine(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """(B, given) to (log_scale, shift), each (B, changed), in the precision of ``given``."""
        raw = self.network(given.to(self.network[-1].weight.dtype))
        with full_precision(given.device):
            log_scale, shift = raw.to(given.dtype).chunk(2, dim=1)
            return log_scale if self.bound is None else self.bound * torch.tanh(log_scale / self.bound), shift


@FLOW_TEACHERS.register_module()
class CouplingFlow(FlowTeacher):
    """Blocks that transform one half of a vector given the other, in turn; starts as the identity.

    Block 0 transforms the second half of the entries, block 1 the first, and so on: for points in the plane one
    coordinate given the other. There are no classes, so guidance has no meaning and its scale is not looked at,
    as in an unconditional TARFlow.

    Args:
        dimensions: entries of a vector, given as an image (dimensions, 1, 1); the first half is the smaller one.
        blocks: number of coupling blocks.
        width: width of the networks' hidden layers.
        layers: hidden layers of every network, with SiLU.
        bound: the log-scales lie in (-bound, bound), by bound * tanh(. / bound); None for no bound. The shifts
            are free. ``saturation`` is the share of log-scales beyond 0.99 of it.
    """

    num_classes = 0

    def __init__(
        self,
        dimensions: Annotated[int, Range(low=2)],
        blocks: Depth,
        width: Positive,
        layers: Depth = 2,
        bound: Above0 | None = None,
    ):
        super().__init__()
        self.image_shape = (dimensions, 1, 1)
        self.blocks = blocks
        self.inverse_evaluations = blocks
        self.bound = bound
        self.halves = [dimensions // 2, dimensions - dimensions // 2]
        self.couplings = nn.ModuleList(
            CouplingBlock(self.halves[index % 2], self.halves[1 - index % 2], width, layers, bound)
            for index in range(blocks)
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Trajectory:
        """Map (B, C, 1, 1) data to its trajectory; states and log-determinants are at least float32."""
        x = x if x.dtype == torch.float64 else x.float()
        halves = list(x.flatten(1).split(self.halves, dim=1))
        states, log_dets, saturations = [x], [], [x.new_zeros(())]
        for index, coupling in enumerate(self.couplings):
            given, changed = index % 2, 1 - index % 2
            log_scale, shift = coupling.affine(halves[given])
            halves[changed] = (halves[changed] - shift) * torch.exp(-log_scale)
            states.append(torch.cat(halves, dim=1).view_as(x))
            log_dets.append(-log_scale.sum(dim=1) / sum(self.halves))
            if self.bound is not None:
                saturations.append((log_scale.detach().abs() > 0.99 * self.bound).to(x.dtype).mean())
        return Trajectory(states, log_dets, torch.stack(saturations).sum() / self.blocks)

    def repeated_layers(self) -> list[nn.Module]:
        return [coupling.network for coupling in self.couplings]

    @torch.no_grad()
    def inverse(self, z: Tensor, labels: Tensor | None = None, guidance: float | Tensor = 0.0) -> Tensor:
        """Map (B, C, 1, 1) noise to data exactly; ``guidance`` has no effect."""
        halves = list(z.flatten(1).split(self.halves, dim=1))
        for index in reversed(range(self.blocks)):
            given, changed = index % 2, 1 - index % 2
            log_scale, shift = self.couplings[index].affine(halves[given])
            halves[changed] = halves[changed] * torch.exp(log_scale) + shift
        return torch.cat(halves, dim=1).view_as(z)
