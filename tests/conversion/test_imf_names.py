"""iMF's sizes, and the names that FD-Loss (arXiv 2604.28190) gives the networks of pMF and iMF."""

import json
from pathlib import Path

import pytest
import torch

from genflow.analysis.description import build_on_meta
from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import dump_yaml
from genflow.conversion.pmf import from_torch, plain_name, to_torch
from genflow.conversion.pmf_release import convert_imf, convert_pmf
from genflow.errors import UserError
from genflow.runs.folder import open_run

ROOT = Path(__file__).parents[2]
OFFICIAL = json.loads((ROOT / "tests" / "golden" / "pmf" / "official_shapes.json").read_text())
#: Width and layers of trunk and main head.
SIZES = {"b2": (768, 12), "m2": (768, 24), "l2": (1024, 32), "xl2": (1024, 48)}
TINY = {"image_size": 8, "patch_size": 2, "width": 24, "depth": 3, "heads": 2, "channels": 4, "num_classes": 5}
TINY |= {"head_depth": 1, "rotary": "sequence", "learned_positions": False}


def published(width, layers, main=8, patch=2, channels=4, classes=1000, heads=None):
    """Names and shapes of a published network of iMF without auxiliary head, by plain names."""
    head_width = width // heads if heads else 64
    inner = width * 8 // 3
    shapes = {
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        "u_final_layer.norm.weight": (width,),
        "u_final_layer.linear.weight": (channels * patch**2, width),
        "u_final_layer.linear.bias": (channels * patch**2,),
    }
    for name in ("h", "omega", "cfg_t_start", "cfg_t_end"):
        for index, features in ((0, 256), (2, width)):
            shapes[f"{name}_embedder.mlp.{index}.weight"] = (width, features)
            shapes[f"{name}_embedder.mlp.{index}.bias"] = (width,)
    for name, count in (("class", 8), ("omega", 4), ("t_min", 2), ("t_max", 2), ("time", 4)):
        shapes[f"{name}_tokens"] = (count, width)
    blocks = [*(f"shared_blocks.{i}" for i in range(layers - main)), *(f"u_heads.{i}" for i in range(main))]
    for block in blocks:
        shapes |= {f"{block}.{name}.weight": (width,) for name in ("norm1", "norm2")}
        shapes |= {f"{block}.{name}": (width,) for name in ("attn_scale", "mlp_scale")}
        shapes |= {f"{block}.attn.{name}_norm.weight": (head_width,) for name in "qk"}
        shapes |= {f"{block}.attn.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "out")}
        shapes |= {f"{block}.mlp.{name}.weight": (inner, width) for name in ("w1", "w3")}
        shapes[f"{block}.mlp.w2.weight"] = (width, inner)
    return shapes


def wrapped(name, style):
    """A plain name as the official code has it (``flax``), or FD-Loss (``fd``)."""
    module, _, end = name.rpartition(".")
    linear = module.endswith(("_proj", ".w1", ".w2", ".w3", ".linear", ".mlp.0", ".mlp.2"))
    if linear:
        module += "._flax_linear" if style == "flax" else ".linear"
    elif module.endswith("embedding_table"):
        module += "._flax_embedding" if style == "flax" else ".embedding"
    return f"net.{module}.{end}" if module else f"net.{end}"


def shapes_of(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def of_batch(shapes):
    """Our shapes of theirs: tokens are a batch of one."""
    return {name: (1, *shape) if name.endswith("_tokens") else shape for name, shape in shapes.items()}


@pytest.mark.parametrize("style", ["flax", "fd"])
@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes(size, style):
    pytest.importorskip("diffusers")
    graph = ComponentGraph.load(ROOT / "recipes" / f"imf_{size}_imagenet.yaml")
    network = build_on_meta(graph, for_training=False).generator.network
    expected = of_batch(published(*SIZES[size]))
    assert shapes_of(to_torch(network.state_dict(), 4)) == expected
    state = {wrapped(name, style): torch.empty(shape, device="meta") for name, shape in expected.items()}
    assert shapes_of(from_torch(state, 4)) == shapes_of(network.state_dict())


@pytest.mark.parametrize("size", OFFICIAL)
def test_pmf_by_the_names_of_fd_loss(size):
    """The same plain names from both, with the auxiliary head."""
    for name in (name for name in OFFICIAL[size]["shapes"] if name != "rope_freqs"):
        plain = plain_name(name)
        assert wrapped(plain, "flax") == f"net.{name}"
        assert plain_name(wrapped(plain, "fd")) == plain == plain_name(plain)


@pytest.mark.parametrize("size", SIZES)
def test_released_files_are_told_by_their_shapes(tmp_path, size):
    shapes = {**published(*SIZES[size]), "one_more": (1,)}
    torch.save(
        {wrapped(name, "fd"): torch.zeros(1).expand(shape) for name, shape in shapes.items()}, tmp_path / "i.pth"
    )
    with pytest.raises(UserError) as caught:
        convert_imf(tmp_path / "i.pth", tmp_path / "run", ROOT / "recipes")
    recipe = ROOT / "recipes" / f"imf_{size}_imagenet.yaml"
    assert str(caught.value) == f"{tmp_path}/i.pth: does not fit {recipe}: 'one_more' is not in the model"


# Small files


def write_recipe(path):
    model = {
        "type": "MeanFlow",
        "backbone": {"type": "PixelTransformer", **TINY},
        "field": {"type": "AverageVelocity", "prediction": "u"},
        "times": {"type": "LogitNormalTimes", "mean": 0.0, "std": 1.0},
        "codec": {"type": "Identity", "image_size": 8, "channels": 4},
        "loss": {"type": "AdaptiveWeighting", "loss": {"type": "SquaredError"}},
        "guidance": {"type": "IntervalGuidance"},
    }
    path.write_text(dump_yaml({"model": model}), encoding="utf-8")
    return path


def made(seed=0):
    """A small network of ours with random weights."""
    torch.manual_seed(seed)
    network = PixelTransformer(**TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def released(network, style):
    """Its weights as they are released."""
    plain = to_torch(network.state_dict(), 4)
    return {wrapped(name, style): value[0] if name.endswith("_tokens") else value for name, value in plain.items()}


@pytest.mark.parametrize("auxiliary", [None, "output", "whole"])
@pytest.mark.parametrize("style", ["flax", "fd"])
def test_a_file_becomes_a_run_with_its_weights(tmp_path, style, auxiliary):
    network = made()
    state = released(network, style)
    assert shapes_of({plain_name(name): value for name, value in state.items()}) == published(
        24, 3, 1, classes=5, heads=2
    )
    parts = {None: (), "output": ("u_final_layer",), "whole": ("u_final_layer", "u_heads")}[auxiliary]
    for part in parts:
        theirs = part.replace("u_", "v_")
        state |= {name.replace(part, theirs): value for name, value in state.items() if part in name}
    torch.save({"model": state}, tmp_path / "imf.pth")
    recipe = write_recipe(tmp_path / "tiny.yaml")
    assert convert_imf(tmp_path / "imf.pth", tmp_path / "run", ROOT / "recipes", recipe) == recipe
    generator = open_run(tmp_path / "run").generator()
    found = generator.network.state_dict()
    assert found.keys() == network.state_dict().keys()
    assert all(found[name].equal(value) for name, value in network.state_dict().items())
    assert generator.sample(torch.tensor([1, 2]), seed=0, guidance=2.0).isfinite().all()


def test_a_file_of_the_other_project(tmp_path):
    torch.save(released(made(), "fd"), tmp_path / "imf.pth")
    with pytest.raises(UserError, match=r"not the weights of pMF: 'x_embedder\.proj1\.weight' is missing"):
        convert_pmf(tmp_path / "imf.pth", tmp_path / "run", ROOT / "recipes")
    with pytest.raises(UserError, match=r"width and layers are \(2, 24, 3\), which was not released"):
        convert_imf(tmp_path / "imf.pth", tmp_path / "run", ROOT / "recipes")
