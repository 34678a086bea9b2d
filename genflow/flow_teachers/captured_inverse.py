"""The exact inverse of a stack of flow blocks: step by step, or replayed from CUDA graphs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.flow_teachers.flow_block import FlowBlock, GuidedInverse


def invert_blocks(
    blocks: Sequence[FlowBlock], tokens: Tensor, labels: Tensor | None, guidance: GuidedInverse | None
) -> list[Tensor]:
    """Invert the last block first: (B, T, D) noise tokens to the states after each block, data last."""
    states = []
    for block in reversed(blocks):
        tokens = block.inverse(tokens, labels, guidance)
        states.append(tokens)
    return states


def require_cuda(device: torch.device) -> None:
    """Raise UserError on any other device: nothing would be recorded there."""
    if device.type != "cuda":
        raise UserError(f"a captured inverse runs on CUDA devices only, found {device}")


@dataclass(frozen=True)
class Recording:
    """One graph per block and the memory that they read and write.

    Args:
        inputs: tokens, labels and guidance scales, as many as there are.
        graphs: in the order of replay.
        states: what each graph leaves.
    """

    inputs: list[Tensor]
    graphs: list[Any]
    states: list[Tensor]


class CapturedInverse:
    """:func:`invert_blocks` with the whole token loop of a block in one CUDA graph.

    A step launches some forty small kernels; a graph launches all steps of a block at once. The first call for a
    batch size, dtype and form of guidance runs the blocks twice, to warm up and to record. Later calls copy
    tokens, labels and scales into the recorded buffers and replay, so other values of these need no new
    recording. The weights are read where they lie: changing them in place takes effect, and moving them (to
    another device or dtype) leads to a new recording. Recordings keep their memory as long as this object lives.
    """

    def __init__(self) -> None:
        self.recordings: dict[tuple, Recording] = {}

    def __call__(
        self, blocks: Sequence[FlowBlock], tokens: Tensor, labels: Tensor | None, guidance: GuidedInverse | None
    ) -> list[Tensor]:
        """As :func:`invert_blocks`; the states are copies.

        Raises:
            UserError: the tokens are not on a CUDA device.
        """
        require_cuda(tokens.device)
        scale = None if guidance is None else guidance.scale.expand(len(tokens), 1)
        inputs = [value for value in (tokens, labels, scale) if value is not None]
        form = None if guidance is None else (guidance.guided, guidance.anneal, guidance.temperature, guidance.rule)
        weights = tuple(parameter.data_ptr() for block in blocks for parameter in block.parameters())
        key = (tokens.shape, tokens.dtype, tokens.device, labels is None, form, weights)
        if key not in self.recordings:
            self.recordings[key] = self._record(blocks, tokens, labels, guidance, scale)
        recording = self.recordings[key]
        for buffer, value in zip(recording.inputs, inputs, strict=True):
            buffer.copy_(value)
        for graph in recording.graphs:
            graph.replay()
        return [state.clone() for state in recording.states]

    @staticmethod
    @torch.inference_mode(False)  # buffers made in inference mode could not be written outside it
    @torch.no_grad()
    def _record(
        blocks: Sequence[FlowBlock],
        tokens: Tensor,
        labels: Tensor | None,
        guidance: GuidedInverse | None,
        scale: Tensor | None,
    ) -> Recording:
        tokens = tokens.clone(memory_format=torch.contiguous_format)
        labels = None if labels is None else labels.clone()
        if guidance is not None:
            guidance = replace(guidance, scale=scale.clone(memory_format=torch.contiguous_format))
        inputs = [value for value in (tokens, labels, guidance and guidance.scale) if value is not None]
        # Libraries allocate their workspaces on first use, which must not happen inside a graph.
        stream = torch.cuda.Stream(tokens.device)
        stream.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(stream):
            invert_blocks(blocks, tokens, labels, guidance)
        torch.cuda.current_stream(tokens.device).wait_stream(stream)
        graphs, states, pool = [], [], torch.cuda.graph_pool_handle()
        for block in reversed(blocks):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                tokens = block.inverse(tokens, labels, guidance)
            graphs.append(graph)
            states.append(tokens)
        return Recording(inputs, graphs, states)
