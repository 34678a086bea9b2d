"""pMF's recipes in the six released sizes: names, shapes and parameters of the published networks, which is which."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.analysis.description import build_on_meta
from genflow.analysis.flops import count_generator
from genflow.config.graph import ComponentGraph
from genflow.conversion.pmf import from_torch, plain_name, to_torch
from genflow.conversion.pmf_release import convert_pmf
from genflow.errors import UserError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "pmf"
OFFICIAL = json.loads((GOLDEN / "official_shapes.json").read_text())
# Parameters of the generator, and with both heads.
SIZES = {
    "b16_imagenet256": (118_234_240, 175_474_304),
    "l16_imagenet256": (410_320_768, 511_789_696),
    "h16_imagenet256": (955_508_992, 1_113_904_640),
    "b32_imagenet512": (120_300_928, 179_312_768),
    "l32_imagenet512": (412_977_280, 516_807_808),
    "h32_imagenet512": (959_050_240, 1_120_397_312),
}


def graph_of(size):
    return ComponentGraph.load(ROOT / "recipes" / f"pmf_{size}.yaml", {"model.perceptual": None})


def official_state(size):
    """The official names of a size, blocks written out, with weights on the meta device."""
    entry = OFFICIAL[f"pmfDiT_{size[0].upper()}_{size[1:3]}"]
    state = {}
    for name, shape in entry["shapes"].items():
        counts = [count for blocks, count in entry["block_counts"].items() if name.startswith(f"{blocks}.")]
        for index in range(counts[0] if counts else 1):
            state[name.replace(".N.", f".{index}.")] = torch.empty(shape, device="meta")
    return state


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("size", SIZES)
def test_official_names_and_shapes(size):
    official = official_state(size)
    backbone = build_on_meta(graph_of(size)).backbone
    assert shapes(from_torch(official)) == shapes(backbone.state_dict())
    assert tuple(official.pop("rope_freqs").shape) == tuple(backbone.angles[backbone.prefix :].shape)
    expected = {plain_name(name): value for name, value in official.items()}
    assert shapes(to_torch(backbone.state_dict())) == shapes(expected)


@pytest.mark.parametrize("size", SIZES)
def test_parameters(size):
    generated, both_heads = SIZES[size]
    entry = OFFICIAL[f"pmfDiT_{size[0].upper()}_{size[1:3]}"]
    assert (entry["inference_u_only"], entry["total"]) == (generated, both_heads)
    graph = graph_of(size)
    generator = build_on_meta(graph, for_training=False).generator
    for module, count in ((generator.network, generated), (build_on_meta(graph), both_heads)):
        assert sum(parameter.numel() for parameter in module.parameters()) == count


# The other sizes take seconds each; tools/analyze_flops.py counts them.
@pytest.mark.parametrize(("size", "macs"), [("b16_imagenet256", 33.3), ("l32_imagenet512", 117.1)])
def test_multiply_adds(size, macs):
    cost = count_generator(build_on_meta(graph_of(size), for_training=False).generator)
    assert cost.generator_macs / 1e9 == pytest.approx(macs, rel=0.01) and cost.nfe == 1


def write_release(file, size, **more):
    """The released file of a size; all weights are one number on disk."""
    shapes_of_main = {name: shape for name, shape in shapes(official_state(size)).items() if name[:2] != "v_"}
    torch.save({f"net.{name}": torch.zeros(1).expand(shape) for name, shape in shapes_of_main.items()} | more, file)


@pytest.mark.parametrize("size", SIZES)
def test_released_files_are_told_by_their_shapes(tmp_path, size):
    write_release(tmp_path / "pmf.pt", size, **{"net.one_more": torch.zeros(1)})
    with pytest.raises(UserError) as caught:
        convert_pmf(tmp_path / "pmf.pt", tmp_path / "run", ROOT / "recipes")
    recipe = ROOT / "recipes" / f"pmf_{size}.yaml"
    assert str(caught.value) == f"{tmp_path}/pmf.pt: does not fit {recipe}: 'one_more' is not in the model"


def test_a_released_file_of_another_size_than_the_recipe(tmp_path):
    write_release(tmp_path / "pmf.pt", "b16_imagenet256")
    recipe = ROOT / "recipes" / "pmf_b32_imagenet512.yaml"
    with pytest.raises(UserError) as caught:
        convert_pmf(tmp_path / "pmf.pt", tmp_path / "run", ROOT / "recipes", recipe)
    assert str(caught.value) == (
        f"{tmp_path}/pmf.pt: does not fit {recipe}: "
        "'x_embedder.proj1.weight' has shape (128, 3, 16, 16), expected (128, 3, 32, 32)"
    )


@pytest.mark.parametrize(
    ("size", "noise_scale", "guidance", "interval", "average"),
    [
        ("b16_imagenet256", 1.0, 8.5, (0.1, 0.7), 2000),
        ("l16_imagenet256", 1.0, 7.0, (0.2, 0.7), 1000),
        ("h16_imagenet256", 2.0, 7.0, (0.2, 0.6), 1000),
        ("b32_imagenet512", 2.0, 6.5, (0.1, 0.7), 2000),
        ("l32_imagenet512", 4.0, 7.5, (0.2, 0.6), 2000),
        ("h32_imagenet512", 4.0, 5.5, (0.1, 0.6), 500),
    ],
)
def test_sampling_settings(size, noise_scale, guidance, interval, average):
    graph = graph_of(size)
    generator = build_on_meta(graph, for_training=False).generator
    assert (generator.noise_scale, generator.default_guidance, generator.interval) == (noise_scale, guidance, interval)
    averages = graph.section("ema")
    assert {rule.half_life for rule in averages.values()} == {500e3, 1000e3, 2000e3}
    assert next(iter(averages.items())) == (f"half_life_{average}", averages[f"half_life_{average}"])
    assert all(name == f"half_life_{rule.half_life / 1000:g}" for name, rule in averages.items())


def test_there_and_back():
    archive = np.load(GOLDEN / "torch_net.npz", allow_pickle=False)
    official = {key.removeprefix("sd/"): torch.from_numpy(archive[key]) for key in archive.files if key[:3] == "sd/"}
    again = to_torch(from_torch(official))
    assert again.keys() == {plain_name(name) for name in official}
    assert all(again[plain_name(name)].equal(value) for name, value in official.items())


@pytest.mark.parametrize("convert", [from_torch, to_torch])
def test_other_names(convert):
    with pytest.raises(ValueError, match=r"^'blocks\.0\.weight' has no counterpart$"):
        convert({"blocks.0.weight": torch.zeros(1)})
