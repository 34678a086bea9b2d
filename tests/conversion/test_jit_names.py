"""JiT's six sizes: names, shapes and parameters of the published networks, and which file is which."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from genflow.analysis.description import build_on_meta
from genflow.backbones.jit import JiT
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import dump_yaml
from genflow.conversion.jit import from_torch, to_torch
from genflow.conversion.jit_release import convert_jit
from genflow.errors import UserError
from genflow.runs.folder import open_run
from genflow.weights import read_weights

RECIPES = Path(__file__).parents[2] / "recipes"
#: Patch, width, layers, heads, bottleneck; guidance that the authors sample with.
SIZES = {
    "b16_imagenet256": (16, 768, 12, 12, 128, 3.0),
    "l16_imagenet256": (16, 1024, 24, 16, 128, 2.4),
    "h16_imagenet256": (16, 1280, 32, 16, 256, 2.2),
    "b32_imagenet512": (32, 768, 12, 12, 128, 3.0),
    "l32_imagenet512": (32, 1024, 24, 16, 128, 2.5),
    "h32_imagenet512": (32, 1280, 32, 16, 256, 2.3),
}
TINY = (4, 24, 2, 2, 6)
TINY_BACKBONE = {"type": "JiT", "image_size": 8, "patch_size": 4, "width": 24, "depth": 2, "heads": 2}
TINY_BACKBONE |= {"num_classes": 5, "bottleneck": 6, "context_tokens": 3, "context_start": 1}


def published(patch, width, depth, heads, bottleneck, classes=1000, tokens=256, context=32):
    """Names and shapes of a published network."""
    inner = 4 * width * 2 // 3
    maps = {
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (3 * patch**2, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    shapes = {
        "pos_embed": (1, tokens, width),
        "in_context_posemb": (1, context, width),
        "x_embedder.proj1.weight": (bottleneck, 3, patch, patch),
        "x_embedder.proj2.weight": (width, bottleneck, 1, 1),
        "x_embedder.proj2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        "final_layer.norm_final.weight": (width,),
    }
    for block in (f"blocks.{index}" for index in range(depth)):
        maps |= {
            f"{block}.attn.qkv": (3 * width, width),
            f"{block}.attn.proj": (width, width),
            f"{block}.mlp.w12": (2 * inner, width),
            f"{block}.mlp.w3": (width, inner),
            f"{block}.adaLN_modulation.1": (6 * width, width),
        }
        shapes |= {f"{block}.{norm}.weight": (width,) for norm in ("norm1", "norm2")}
        shapes |= {f"{block}.attn.{norm}.weight": (width // heads,) for norm in ("q_norm", "k_norm")}
    for name, shape in maps.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def shapes_of(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def graph_of(size):
    return ComponentGraph.load(RECIPES / f"jit_{size}.yaml")


@pytest.mark.parametrize("size", SIZES)
def test_published_names_and_shapes(size):
    *sizes, guidance = SIZES[size]
    method = build_on_meta(graph_of(size), for_training=False)
    backbone, generator = method.backbone, method.generator
    whole = {**backbone.state_dict(), "positions": backbone.positions}
    expected = published(*sizes)
    assert shapes_of(to_torch(whole)) == expected
    official = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    assert shapes_of(from_torch(official)) == shapes_of(whole)
    # The authors' time runs the other way.
    assert (generator.default_guidance, generator.interval, generator.nfe) == (guidance, (0.0, 0.9), 99)
    assert generator.noise_scale == (2.0 if "512" in size else 1.0)


@pytest.mark.parametrize("size", SIZES)
def test_released_files_are_told_by_their_shapes(tmp_path, size):
    shapes = {**published(*SIZES[size][:-1]), "one_more": (1,)}
    torch.save({f"net.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()}, tmp_path / "jit.pth")
    with pytest.raises(UserError) as caught:
        convert_jit(tmp_path / "jit.pth", tmp_path / "run", RECIPES)
    recipe = RECIPES / f"jit_{size}.yaml"
    assert str(caught.value) == f"{tmp_path}/jit.pth: does not fit {recipe}: 'one_more' is not in the model"


def test_other_names():
    for convert, names in ((from_torch, ("blocks.0.norm3.weight", "rope")), (to_torch, ("layers.0.gain", "norm"))):
        for name in names:
            with pytest.raises(ValueError, match=f"^'{name}' has no counterpart$"):
                convert({name: torch.zeros(1)})


# Small files


def released(seed=0):
    """A small published network with random weights, but for its positions."""
    generator = torch.Generator().manual_seed(seed)
    shapes = published(*TINY, classes=5, tokens=4, context=3)
    state = {f"net.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sizes = {name: value for name, value in TINY_BACKBONE.items() if name != "type"}
    return state | {"net.pos_embed": JiT(**sizes).positions.unsqueeze(0)}


def write_recipe(path, **backbone):
    model = {
        "type": "FlowMatching",
        "backbone": {**TINY_BACKBONE, **backbone},
        "field": {"type": "InstantaneousVelocity"},
        "times": {"type": "LogitNormalTimes", "mean": 0.0, "std": 1.0, "region": "r_equals_t"},
        "codec": {"type": "Identity", "image_size": 8},
        "loss": {"type": "SquaredError"},
    }
    path.write_text(dump_yaml({"model": model}), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder but for the recipe ``tiny.yaml``."""
    monkeypatch.chdir(tmp_path)
    write_recipe(Path("tiny.yaml"))


def convert(entry=None, recipe="tiny.yaml"):
    return convert_jit(Path("jit.pth"), Path("run"), RECIPES, Path(recipe), entry)


def test_weights_are_those_of_the_file_and_sample(here):
    torch.save(released(), "jit.pth")
    assert convert() == (Path("tiny.yaml"), "")
    network = open_run(Path("run")).generator().network
    again = to_torch({**network.state_dict(), "positions": network.positions})
    assert {f"net.{name}" for name in again} == set(released())
    assert all(again[name.removeprefix("net.")].equal(value) for name, value in released().items())
    images = open_run(Path("run")).generator().sample(torch.tensor([2, 2, 3]), seed=0, guidance=1.5)
    assert images.shape == (3, 3, 8, 8) and images.isfinite().all()


@pytest.mark.parametrize("entry", [None, "model", "model_ema2"])
def test_a_checkpoint_with_averages(here, entry):
    """As the authors' training writes it; sampled are the first averages."""
    states = {name: released(seed) for seed, name in enumerate(("model", "model_ema1", "model_ema2"))}
    arguments = Namespace(model="JiT-B/16", lr=None, epochs=600)
    torch.save({**states, "optimizer": {"state": {}, "param_groups": []}, "epoch": 599, "args": arguments}, "jit.pth")
    assert convert(entry) == (Path("tiny.yaml"), entry or "model_ema1")
    weights = read_weights(next(Path("run").glob("*.safetensors")))
    assert weights["norm.weight"].equal(states[entry or "model_ema1"]["net.final_layer.norm_final.weight"])


def test_learned_positions(here):
    state = released() | {"net.pos_embed": torch.full((1, 4, 24), 0.5)}
    torch.save(state, "jit.pth")
    write_recipe(Path("learned.yaml"), learned_positions=True)
    convert(recipe="learned.yaml")
    assert (open_run(Path("run")).generator().network.positions == 0.5).all()
