"""ConvNeXt V2: golden features, the layouts of weight files, and what is refused."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.errors import UserError
from genflow.feature_encoders import ConvNeXtV2
from genflow.feature_encoders.convnext_v2 import GlobalResponseNorm
from genflow.feature_encoders.imagenet import Normalization, resize
from genflow.weights import write_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "pmf" / "convnext_features.npz"
DRIFTING = Path(__file__).parents[1] / "golden" / "drifting" / "convnext_v2.npz"


def official_name(path):
    """``params/stages_0/layers_1/dwconv/kernel`` to ``stages.0.1.dwconv.weight``."""
    name = path.removeprefix("params/").replace("/layers_", ".").replace("stages_", "stages.")
    name = name.replace("downsample_layers_", "downsample_layers.").replace("/", ".")
    return name.replace("kernel", "weight").replace("norm.scale", "norm.weight")


def official_state(golden):
    """The golden parameters as the authors' PyTorch code names and lays them out."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}
    state = {}
    for path in golden.files:
        if path.startswith("params/"):
            value = torch.from_numpy(golden[path])
            state[official_name(path)] = value.permute(axes[value.ndim]) if path.endswith("kernel") else value
    return state


@pytest.fixture(scope="module")
def golden():
    """Sizes, the authors' state, images and features."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        config = json.loads(str(file["config"]))
        sizes = {"depths": tuple(config["depths"]), "widths": tuple(config["dims"])}
        images = torch.from_numpy(file["in/x"]).permute(0, 3, 1, 2)
        return sizes, official_state(file), images, torch.from_numpy(file["out/features"])


@pytest.fixture
def saved(golden, tmp_path):
    """Write a state as the authors do; returns the path and the sizes."""

    def write(change=lambda state: state):
        state = {**golden[1], "head.weight": torch.zeros(7, 20), "head.bias": torch.zeros(7)}
        torch.save({"model": change(state)}, tmp_path / "official.pt")
        return str(tmp_path / "official.pt"), golden[0]

    return write


@torch.no_grad()
def test_golden(golden, saved):
    path, sizes = saved()
    encoder = ConvNeXtV2(weights=path, **sizes)
    features = encoder(golden[2])
    assert encoder.has_weights and features.keys() == {"pooled"} and features["pooled"].shape == (2, 1, 20)
    expected = golden[3]
    assert torch.allclose(features["pooled"][:, 0], expected, rtol=0, atol=1e-5 * expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("layout", ["safetensors", "pth", "1x1 convolutions"])
def test_layouts_of_timm(golden, saved, tmp_path, layout):
    path, sizes = saved()
    first = ConvNeXtV2(weights=path, **sizes)
    state = first.network.state_dict() | {"head.fc.weight": torch.ones(7, 20), "head.fc.bias": torch.ones(7)}
    again = tmp_path / ("timm.safetensors" if layout == "safetensors" else "timm.pth")
    if layout == "1x1 convolutions":  # timm's small variants
        state = {
            name: value[..., None, None] if ".mlp.fc" in name and value.ndim == 2 else value
            for name, value in state.items()
        }
        assert state["stages.0.blocks.0.mlp.fc1.weight"].shape == (32, 8, 1, 1)
    if layout == "safetensors":
        write_weights(again, state)
    else:
        torch.save(state, again)
    second = ConvNeXtV2("tiny", str(again), **sizes)
    assert torch.equal(second(golden[2])["pooled"], first(golden[2])["pooled"])


def transformers_name(name):
    """``stages.0.1.dwconv.weight`` to ``convnextv2.encoder.stages.0.layers.1.dwconv.weight``."""
    for place, old, new in (
        ("downsample_layers.0.0.", "downsample_layers.0.0.", "embeddings.patch_embeddings."),
        ("downsample_layers.0.1.", "downsample_layers.0.1.", "embeddings.layernorm."),
        ("downsample_layers.", r"downsample_layers\.(\d)\.", r"encoder.stages.\1.downsampling_layer."),
        ("stages.", r"stages\.(\d)\.", r"encoder.stages.\1.layers."),
        ("norm.", "norm.", "layernorm."),
    ):
        if name.startswith(place):
            name = re.sub(old, new, name, count=1)
            break
    name = name.replace("grn.gamma", "grn.weight").replace("grn.beta", "grn.bias")
    return "convnextv2." + re.sub(r"(layers\.\d+)\.norm\.", r"\1.layernorm.", name)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["convnextv2.", ""])
def test_names_of_transformers(golden, saved, tmp_path, prefix):
    path, sizes = saved()
    state = {transformers_name(name).replace("convnextv2.", prefix): value for name, value in golden[1].items()}
    assert f"{prefix}encoder.stages.1.layers.1.grn.weight" in state and f"{prefix}layernorm.weight" in state
    write_weights(tmp_path / "model.safetensors", state | {"classifier.weight": torch.ones(7, 20)})
    features = [ConvNeXtV2(weights=str(file), **sizes)(golden[2]) for file in (path, tmp_path / "model.safetensors")]
    assert torch.equal(features[0]["pooled"], features[1]["pooled"])


# The features of all stages


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    """The arrays of Drifting's file, and our encoder with its weights."""
    with np.load(DRIFTING, allow_pickle=False) as file:
        config = json.loads(str(file["config"]))
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "config"}
        path = tmp_path_factory.mktemp("convnext") / "official.pt"
        torch.save(official_state(file), path)
    sizes = {"depths": tuple(config["depths"]), "widths": tuple(config["dims"])}
    return arrays, ConvNeXtV2(weights=str(path), features="stages", **sizes)


@torch.no_grad()
@pytest.mark.parametrize("side", [256, 64])
def test_golden_stages(drifting, side):
    arrays, encoder = drifting
    images = arrays[f"x_{side}"].permute(0, 3, 1, 2)
    resized = resize(Normalization()(images), 224)[:, :, ::7, ::7].permute(0, 2, 3, 1)
    found = {f"resized_{side}_every7th": resized} | {
        f"act_{side}/{name}": value for name, value in encoder(images).items()
    }
    assert found.keys() == {name for name in arrays if name.startswith((f"act_{side}", f"resized_{side}"))}
    assert len(encoder.feature_names) == 13 and [f"act_{side}/{name}" for name in encoder.feature_names] == [*found][1:]
    for name, value in found.items():
        expected = arrays[name]
        assert value.shape == expected.shape
        assert torch.allclose(value, expected, rtol=0, atol=1e-5 * expected.abs().max().item()), name


@torch.no_grad()
def test_stages_are_in_float32_under_autocast(drifting):
    arrays, encoder = drifting
    images = arrays["x_64"].permute(0, 3, 1, 2)
    plain = encoder(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder(images)
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_gradient_reaches_the_images_and_beyond_their_range(drifting):
    """Images are not clipped."""
    arrays, encoder = drifting
    images = (3 * arrays["x_64"].permute(0, 3, 1, 2)).requires_grad_()
    sum(value.square().sum() for value in encoder(images).values()).backward()
    assert images.abs().max() > 1 and (images.grad[images.detach().abs() > 1] != 0).all()


def test_published_stages_on_the_meta_device():
    with torch.device("meta"):
        found = ConvNeXtV2("base", features="stages")(torch.zeros(2, 3, 256, 256))
    for stage, shape in enumerate([(2, 784, 256), (2, 196, 512), (2, 49, 1024)], start=1):
        assert found[f"convenxt_stage_{stage}"].shape == shape


def test_norm_of_responses_has_a_finite_gradient_at_zero():
    norm = GlobalResponseNorm(3)
    torch.nn.init.ones_(norm.weight)
    x = torch.zeros(1, 2, 2, 3, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()
    x = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    length = (x.square().sum(dim=(1, 2)) + 1e-6).sqrt()
    by_hand = x + x * (length / (length.mean(dim=1, keepdim=True) + 1e-6))[:, None, None]
    assert torch.allclose(norm.double()(x), by_hand, rtol=1e-12)


@torch.no_grad()
def test_grey_images_are_repeated(golden, saved):
    path, sizes = saved()
    encoder = ConvNeXtV2(weights=path, **sizes)
    grey = golden[2][:, :1]
    assert torch.equal(encoder(grey)["pooled"], encoder(grey.repeat(1, 3, 1, 1))["pooled"])


@pytest.mark.parametrize(("variant", "width", "millions"), [("atto", 320, 3.4), ("base", 1024, 87.7)])
def test_published_sizes_on_the_meta_device(variant, width, millions):
    with torch.device("meta"):
        encoder = ConvNeXtV2(variant, "nowhere.pt")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(millions * 1e6, rel=0.01)
    assert encoder(torch.zeros(1, 3, 64, 64, device="meta"))["pooled"].shape == (1, 1, width)


def test_without_weights(golden):
    encoder = ConvNeXtV2("atto")
    assert not encoder.has_weights
    with pytest.raises(UserError, match=r"^ConvNeXtV2 has no weights: set weights: to a local file$"):
        encoder(golden[2])


class Payload:
    """Pickles as a call that creates a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


GRN = "stages.1.1.grn.gamma"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: without(s, GRN), "'stages.1.blocks.1.mlp.grn.weight' is missing from the file"),
        (lambda s: s | {GRN: s[GRN][..., :5]}, "'stages.1.blocks.1.mlp.grn.weight' has shape (5,), expected (48,)"),
        (
            lambda s: s | {"stages.0.0.pwconv1.weight": s["stages.0.0.pwconv1.weight"].T},
            "'stages.0.blocks.0.mlp.fc1.weight' has shape (8, 32), expected (32, 8)",
        ),
        (lambda s: s | {"extra": torch.ones(1)}, "'extra' is not in the model"),
        (lambda s: without(s, "norm.bias"), "'head.norm.bias' is missing from the file"),
        (lambda s: {}, "'stem.0.weight' is missing from the file"),
        (lambda s: s | {"step": 3}, "not a state dictionary: expected tensors by name"),
    ],
)
def test_weights_of_another_sort(saved, change, problem):
    path, sizes = saved(change)
    with pytest.raises(UserError) as caught:
        ConvNeXtV2(weights=path, **sizes)
    assert str(caught.value) == f"{path}: {problem}"


def test_weights_of_another_variant(saved):
    path, _ = saved()
    with pytest.raises(UserError, match=r"'stem\.0\.weight' has shape \(8, 3, 4, 4\), expected \(40, 3, 4, 4\)"):
        ConvNeXtV2("atto", path)


def test_damaged_and_hostile_files(saved, tmp_path):
    path, sizes = saved()
    cases = {"no such weights file": str(tmp_path / "nowhere.pt")}
    for kept in (0, 100, -1):
        cut = tmp_path / f"cut{kept}.pt"
        cut.write_bytes(Path(path).read_bytes()[:kept])
        cases[f"not a complete weights file: {kept}"] = str(cut)
    torch.save({"model": {"stem.0.weight": Payload(tmp_path / "marker")}}, tmp_path / "code.pt")
    cases["refused: a weights file may hold tensors and plain values only"] = str(tmp_path / "code.pt")
    for problem, file in cases.items():
        with pytest.raises(UserError) as caught:
            ConvNeXtV2(weights=file, **sizes)
        assert str(caught.value).startswith(f"{file}: {problem.rstrip('-0123456789')}"), problem
        assert str(caught.value).isprintable()
    assert not (tmp_path / "marker").exists()
