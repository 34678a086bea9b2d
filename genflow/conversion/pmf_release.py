"""A released file of pMF's or iMF's weights, recognised and checked, to a run folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.config.graph import ComponentGraph
from genflow.conversion.numpy_file import read_archive
from genflow.conversion.pmf import ROTATION, from_jax, from_torch, plain_name, to_torch
from genflow.conversion.released_sizes import ReleasedSizes
from genflow.errors import UserError
from genflow.layers.embeddings import axial_rotation
from genflow.runs.converted import check_free, write_run
from genflow.weights import check_state, read_state

#: Of the trunk and of the main head.
_LAYERS = ("shared_blocks.", "u_heads.")
_PMF = ReleasedSizes(
    "pMF",
    "x_embedder.proj1.weight",
    "pos_embed",
    _LAYERS,
    {
        (16, 768, 16): "pmf_b16_imagenet256",
        (16, 1024, 32): "pmf_l16_imagenet256",
        (16, 1280, 48): "pmf_h16_imagenet256",
        (32, 768, 16): "pmf_b32_imagenet512",
        (32, 1024, 32): "pmf_l32_imagenet512",
        (32, 1280, 48): "pmf_h32_imagenet512",
    },
)
_IMF = ReleasedSizes(
    "iMF",
    "x_embedder.proj.weight",
    "class_tokens",
    _LAYERS,
    {
        (2, 768, 12): "imf_b2_imagenet",
        (2, 768, 24): "imf_m2_imagenet",
        (2, 1024, 32): "imf_l2_imagenet",
        (2, 1024, 48): "imf_xl2_imagenet",
    },
)
#: The auxiliary head, which exists for training, has the layers of the main head. Networks that were made for sampling
#: have its output alone.
_AUXILIARY = {"u_heads.": "v_heads.", "u_final_layer.": "v_final_layer."}


def convert_pmf(file: Path, out: Path, recipes: Path, recipe: Path | None = None) -> Path:
    """Write the run folder ``out`` with the weights of ``file``; returns the recipe's file.

    Args:
        file: the PyTorch release (what torch.save wrote, or safetensors), or an ``.npz`` of the JAX parameters.
            An auxiliary head is left out.
        out: not there, or an empty folder.
        recipes: the folder of the recipes of the released sizes, of which the file says which it is.
        recipe: the recipe of another size.

    Raises:
        UserError: ``file`` is no such file, or lacks or has more than the network of the recipe; nothing has been
            written.
    """
    return _convert(_PMF, file, out, recipes, recipe)


def convert_imf(file: Path, out: Path, recipes: Path, recipe: Path | None = None) -> Path:
    """As :func:`convert_pmf`, of iMF."""
    return _convert(_IMF, file, out, recipes, recipe)


def _convert(project: ReleasedSizes, file: Path, out: Path, recipes: Path, recipe: Path | None) -> Path:
    check_free(out)
    state = _read(file)
    if recipe is None:
        recipe = recipes / f"{project.find(file, state)}.yaml"
    graph = ComponentGraph.load(recipe)
    network = graph.build_artifact()
    if not isinstance(network, PixelTransformer):
        found = type(network).__name__
        raise UserError(f"{recipe}: model: trains a {found}, {project.name}'s weights are a PixelTransformer's")
    channels = network.image_shape[0]
    try:
        expected = to_torch(network.state_dict(), channels)
    except ValueError as error:
        raise UserError(f"{recipe}: not the network of {project.name}: {error}") from None
    try:
        _check(state, expected, network)
    except ValueError as error:
        raise UserError(f"{file}: does not fit {recipe}: {error}") from None
    weights = from_torch({name: state[name].float() for name in expected}, channels)
    write_run(out, graph, weights, file)
    return recipe


def _read(file: Path) -> dict[str, Tensor]:
    """A file's weights by official names without wrappers."""
    found = read_archive(file) if file.suffix == ".npz" else read_state(file)
    try:
        found = from_jax(found) if file.suffix == ".npz" else found
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        plain = plain_name(name)
        if plain in state:
            raise UserError(f"{file}: has '{plain}' twice, with and without wrappers")
        # Tokens are a batch of one in pMF's own networks only.
        state[plain] = value.unsqueeze(0) if plain.endswith("_tokens") and value.dim() == 2 else value
    return state


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: PixelTransformer) -> None:
    """See that ``state`` is what the official network has.

    Raises:
        ValueError: a key, a shape, a kind of number or the rotary angles are others.
    """
    expected = dict(expected)
    for main, auxiliary in _AUXILIARY.items():
        if any(name.startswith(auxiliary) for name in state):
            expected |= {
                name.replace(main, auxiliary, 1): value for name, value in expected.items() if name.startswith(main)
            }
    if ROTATION in state:
        expected[ROTATION] = network.angles[network.prefix :]
    check_state(expected, state)
    for name, value in state.items():
        wanted = value.is_complex() if name == ROTATION else value.is_floating_point()
        if not wanted:
            raise ValueError(f"'{name}' holds numbers of type {str(value.dtype).removeprefix('torch.')}")
    if ROTATION in state:
        side = network.image_shape[1] // network.patch_size
        angles = axial_rotation(side, 2 * network.angles.shape[1])
        turned = torch.polar(torch.ones_like(angles), angles)
        if not torch.allclose(state[ROTATION].to(turned.dtype), turned, atol=1e-4):
            raise ValueError(f"'{ROTATION}' holds other rotary angles than ours")
