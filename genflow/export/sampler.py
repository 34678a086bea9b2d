"""A generator as a function of plain tensors, and the graph that torch.export makes of it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from genflow.draws import Draws
from genflow.errors import UserError, reason
from genflow.export.score import ExplicitScore
from genflow.generators.base import Generator
from genflow.generators.flow import FlowGenerator

#: The batch that is traced where a file shall take any; 1 would be taken for a constant.
_TRACED = 2

Inputs = dict[str, Tensor]


class Sampler(nn.Module):
    """Noise and whatever else samples are made of in, pictures out.

    Args:
        generator: in evaluation mode.
    """

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(
        self,
        noise: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        style: Tensor | None = None,
    ) -> Tensor:
        """The pictures of a batch.

        Args:
            noise: (B, *noise_shape) standard normal numbers.
            labels: (B,) int64 classes; None where the generator looks at none.
            guidance: (B,) scales; None takes the default.
            style: (B, K) int64 style codes; None where the generator has none.

        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        batch = noise.shape[:1]
        if labels is None:
            labels = torch.zeros(batch, dtype=torch.int64, device=noise.device)
        if guidance is None:
            guidance = torch.full(batch, self.generator.default_guidance, device=noise.device)
        condition = self.generator.condition(labels, guidance)
        if style is not None:
            condition = replace(condition, style=style)
        return self.generator.codec.decode(self.generator(noise, condition)).clamp(-1, 1)


def check_exportable(generator: Generator) -> None:
    """See that a generator is a graph of fixed size, and can decode.

    Raises:
        UserError: it is the inverse of a flow, or its codec has no weights.
    """
    if isinstance(generator, FlowGenerator):
        raise UserError(
            f"the exact inverse of a flow is not exported: its {generator.nfe} evaluations run one after the other, "
            "each on what the last one has put into caches, and a graph would hold the flow that often; train a "
            "BiFlow, which learns this inverse as one pass, and export that"
        )
    codec = generator.codec
    if not codec.can_decode:
        raise UserError(f"{type(codec).__name__} has no weights to decode with; {codec.weights_hint}")


def made_up_inputs(generator: Generator, batch: int, lowest: bool = False) -> Inputs:
    """Inputs to trace with or to compare by: the noise of seed 0, the classes in turn, a scale for each image.

    Args:
        generator: on the CPU.
        batch: B.
        lowest: all scales are the least that has a meaning, at which some generators take a shorter way.
    """
    positions = torch.arange(batch)
    scales = generator.default_guidance + 0.5 * positions
    if lowest and generator.lowest_guidance > float("-inf"):
        scales = torch.full((batch,), generator.lowest_guidance)
    noise, condition = generator.draw(Draws(0, positions), positions % max(1, generator.num_classes), scales.float())
    noise = noise.clone()  # a view of a tensor of another shape would be traced as one
    inputs = {"noise": noise, "labels": condition.labels, "guidance": condition.guidance, "style": condition.style}
    return {name: value for name, value in inputs.items() if value is not None}


def trace(generator: Generator, batch: int | None) -> ExportedProgram:
    """The graph of a generator and its decoder, steps unrolled.

    Its inputs are those of :class:`Sampler` that samples depend on: a model without classes takes no labels.

    Args:
        generator: on the CPU, without gradients; a score step in it is replaced by its graph.
        batch: B; None for any.

    Raises:
        UserError: torch.export cannot follow it.
    """
    try:
        if getattr(generator, "denoiser", None) is not None:
            generator.denoiser = ExplicitScore(generator.denoiser, batch)
        return _trace(generator, batch)
    except Exception as error:  # whatever a network does that a graph cannot hold
        names = f"{type(generator).__name__} over {type(generator.network).__name__}"
        raise UserError(f"{names} cannot be exported: {reason(error)}") from error


@torch.no_grad()
def _trace(generator: Generator, batch: int | None) -> ExportedProgram:
    example = made_up_inputs(generator, batch or _TRACED)
    program = _export(generator, example, batch)
    used = _used(program)
    if used < example.keys():
        program = _export(generator, {name: value for name, value in example.items() if name in used}, batch)
    return program


def _export(generator: Generator, example: Inputs, batch: int | None) -> ExportedProgram:
    size = Dim("batch", min=1) if batch is None else Dim.STATIC
    shapes = {name: {0: size} for name in example}
    return torch.export.export(Sampler(generator).eval(), (), example, dynamic_shapes=shapes, strict=False)


def _used(program: ExportedProgram) -> set[str]:
    """The names of inputs that are looked at, for more than their batch size; noise always is."""
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    size = torch.ops.aten.sym_size.int
    return {"noise"} | {node.name for node in nodes if any(user.target is not size for user in node.users)}


def input_names(program: ExportedProgram) -> Sequence[str]:
    """The inputs of a graph, in order."""
    return program.graph_signature.user_inputs
