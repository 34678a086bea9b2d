"""A released file of JiT's weights, recognised and checked, to a run folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from genflow.backbones.jit import JiT
from genflow.config.graph import ComponentGraph
from genflow.conversion.jit import from_torch, to_torch
from genflow.conversion.released_sizes import ReleasedSizes
from genflow.errors import UserError, nearest
from genflow.layers.embeddings import axial_sinusoids
from genflow.runs.converted import check_free, write_run
from genflow.weights import check_state, read_states

_JIT = ReleasedSizes(
    "JiT",
    "x_embedder.proj1.weight",
    "pos_embed",
    ("blocks.",),
    {
        (16, 768, 12): "jit_b16_imagenet256",
        (16, 1024, 24): "jit_l16_imagenet256",
        (16, 1280, 32): "jit_h16_imagenet256",
        (32, 768, 12): "jit_b32_imagenet512",
        (32, 1024, 24): "jit_l32_imagenet512",
        (32, 1280, 32): "jit_h32_imagenet512",
    },
)
#: Which state of a file is taken when none is asked for: the average that the authors sample with, then the weights.
_PREFERRED = ("model_ema1", "model")


def convert_jit(
    file: Path, out: Path, recipes: Path, recipe: Path | None = None, entry: str | None = None
) -> tuple[Path, str]:
    """Write the run folder ``out`` with the weights of ``file``; returns the recipe's file and the state's entry.

    Args:
        file: what torch.save wrote, or safetensors: one state dictionary, or several by name.
        out: not there, or an empty folder.
        recipes: the folder of the recipes of the released sizes, of which the file says which it is.
        recipe: the recipe of another size.
        entry: which state of the file; None takes its first average, else its weights. '' is a file of one state.

    Raises:
        UserError: ``file`` is no such file, or lacks or has more than the network of the recipe; nothing has been
            written.
    """
    check_free(out)
    entry, state = _choose(file, entry)
    if recipe is None:
        recipe = recipes / f"{_JIT.find(file, state)}.yaml"
    graph = ComponentGraph.load(recipe)
    network = graph.build_artifact()
    if not isinstance(network, JiT):
        raise UserError(f"{recipe}: model: trains a {type(network).__name__}, JiT's weights are a JiT's")
    try:
        _check(state, network)
    except ValueError as error:
        raise UserError(f"{file}: does not fit {recipe}: {error}") from None
    weights = {name: value.float().contiguous() for name, value in from_torch(state).items()}
    write_run(out, graph, {name: weights[name] for name in network.state_dict()}, file, entry)
    return recipe, entry


def _choose(file: Path, entry: str | None) -> tuple[str, dict[str, Tensor]]:
    """A state of the file by the published names, and its entry."""
    states = read_states(file)
    if entry is None:
        entry = next((name for name in (*_PREFERRED, *states) if name in states), "")
    if entry not in states:
        known = ", ".join(states) if "" not in states else "one state without a name"
        raise UserError(f"{file}: has no weights '{entry}'{nearest(entry, states)} (it has: {known})")
    state = {name.removeprefix("net."): value for name, value in states[entry].items()}
    if len(state) < len(states[entry]):
        raise UserError(f"{file}: has weights twice, with and without 'net.'")
    return entry, state


def _check(state: Mapping[str, Tensor], network: JiT) -> None:
    """See that ``state`` is what the published network has.

    Raises:
        ValueError: a key, a shape, a kind of number, or positions that are fixed, are others.
    """
    check_state(to_torch({**network.state_dict(), "positions": network.positions}), state)
    for name, value in state.items():
        if not value.is_floating_point():
            raise ValueError(f"'{name}' holds numbers of type {str(value.dtype).removeprefix('torch.')}")
    if "positions" in network.state_dict():
        return
    side = network.image_shape[1] // network.patch_size
    if not torch.allclose(state["pos_embed"][0].float(), axial_sinusoids(side, len(network.norm.weight)), atol=1e-4):
        raise ValueError("'pos_embed' are no sines and cosines; a recipe with learned_positions: true takes it")
