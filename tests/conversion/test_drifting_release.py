"""Released folders of Drifting: the format, which model it is, runs that compute the same, and what is refused."""

import json
import os
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch

from genflow.condition import Condition
from genflow.conversion.drifting import to_jax
from genflow.conversion.drifting_release import convert_drifting
from genflow.conversion.flax_file import read_flax
from genflow.engine.artifacts import load_generator, load_method, open_run
from genflow.errors import UserError
from genflow.feature_encoders.latent_mae import LatentMAE
from genflow.recipe import dump_yaml, load_recipe

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "drifting"
TOLERANCE = 1e-5  # of the largest entry, as the README of the vectors says
CHUNKED = "__msgpack_chunked_array__"
ENCODER = {"num_classes": 5, "in_channels": 3, "base_channels": 8, "layers": [1, 2, 1, 1], "input_patch_size": 2}


def packed(array, code=1):
    """An array as flax.serialization packs it; one of NumPy, or (shape, name of the type, content)."""
    if isinstance(array, np.ndarray):
        array = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(code, msgpack.packb(array, use_bin_type=True))


def tree(arrays):
    nested = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = packed(array) if isinstance(array, np.ndarray) else array
    return nested


def write_release(config, arrays, folder="release"):
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "metadata.json").write_text(json.dumps({"model_config": config}))
    Path(folder, "ema_params.msgpack").write_bytes(msgpack.packb(tree(arrays)))
    return Path(folder)


def golden(name):
    archive = np.load(GOLDEN / f"generator_{name}.npz", allow_pickle=False)
    names = [key for key in archive.files if key.startswith("params/")]
    return archive, json.loads(str(archive["config"])), {key.removeprefix("params/"): archive[key] for key in names}


def write_recipe(config, **backbone):
    """``tiny.yaml``, the recipe of a golden generator or of a small encoder."""
    if "base_channels" in config:
        size, channels = 32, config["in_channels"]
        trained = {
            "type": "LatentMAE",
            "image_size": size,
            "channels": channels,
            "width": config["base_channels"],
            "depths": config["layers"],
            "patch_size": config["input_patch_size"],
            "num_classes": config["num_classes"],
            "decoder": True,
        }
        model = {"type": "MaskedAutoencoding", "encoder": trained}
    else:
        size, channels = config["input_size"], config["in_channels"]
        trained = {
            "type": "LightningDiT",
            "image_size": size,
            "patch_size": config["patch_size"],
            "width": config["hidden_size"],
            "depth": config["depth"],
            "heads": config["num_heads"],
            "channels": channels,
            "num_classes": config["num_classes"],
            "condition_width": config["cond_dim"],
            "context_tokens": config["n_cls_tokens"],
            "style_codebooks": config["noise_coords"],
            "style_entries": config["noise_classes"],
            **backbone,
        }
        model = {"type": "Drifting", "backbone": trained, "field": {"type": "DriftingField"}, "labels_per_update": 1}
    model["codec"] = {"type": "Identity", "image_size": size, "channels": channels}
    Path("tiny.yaml").write_text(dump_yaml({"model": model}), encoding="utf-8")
    return Path("tiny.yaml")


def random_encoder():
    torch.manual_seed(0)
    network = LatentMAE(3, 32, width=8, depths=[1, 2, 1, 1], patch_size=2, num_classes=5, decoder=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network, {path: value.numpy() for path, value in to_jax(network.state_dict()).items()}


def channels_first(array):
    return torch.from_numpy(array).movedim(-1, 1).contiguous()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(*arguments):
    """The one line with which a conversion stops, having written nothing."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        convert_drifting(*arguments)
    assert sorted(Path().rglob("*")) == before
    assert str(caught.value).isprintable()
    return str(caught.value)


# The format


def test_arrays_of_every_kind():
    many = np.arange(36, dtype=np.float32).reshape(12, 3)
    chunks = {str(index): packed(many.reshape(-1)[3 * index : 3 * index + 3]) for index in range(12)}
    brain = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    content = {
        "half": packed(np.array([0.5, 65504], dtype=np.float16)),
        "double": packed(np.array([[1 / 3]])),
        "brain": packed(((3,), "bfloat16", brain.view(torch.int16).numpy().tobytes())),
        "bytes": packed(((1, 1), b"float32", np.float32(7).tobytes())),
        "scalar": packed(np.array(3.0, dtype=np.float32), code=3),
        "deep": {"deeper": {"array": packed(many[:, 1])}, "nothing": {}},
        # Sorted as text, so that "10" comes before "2".
        "large": {CHUNKED: True, "shape": {"0": 12, "1": 3}, "chunks": dict(sorted(chunks.items()))},
    }
    Path("all.msgpack").write_bytes(msgpack.packb(content))
    found = read_flax(Path("all.msgpack"))
    assert list(found) == ["half", "double", "brain", "bytes", "scalar", "deep/deeper/array", "large"]
    assert found["half"].tolist() == [0.5, 65504] and found["half"].dtype == torch.float16
    assert found["double"].tolist() == [[1 / 3]] and found["double"].dtype == torch.float64
    assert found["brain"].equal(brain)
    assert found["bytes"].tolist() == [[7]]
    assert found["scalar"].shape == () and found["scalar"] == 3
    assert found["deep/deeper/array"].equal(torch.from_numpy(many[:, 1]))
    assert found["large"].equal(torch.from_numpy(many))


FOUR = np.zeros(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": packed(((5,), "float32", bytes(16)))}, "an array of 16 bytes, which is not float32 of shape (5,)"),
        ({"a": packed(((-2, -2), "float32", bytes(16)))}, ""),
        ({"a": packed(((2, 2), "float16", bytes(16)))}, "an array of 16 bytes, which is not float16 of shape (2, 2)"),
        ({"a": packed(((2**40, 2**40), "float32", bytes(16)))}, "an array of 16 bytes, which is not float32"),
        ({"a": packed(((0,), "float32", b""))}, ""),
        ({"a": packed(np.zeros(4, dtype=np.int32))}, "an array of type int32, expected floating-point numbers"),
        ({"a": packed(((4,), "object", bytes(16)))}, "an array of type object, expected floating-point numbers"),
        ({"a": packed((["4"], "float32", bytes(16)))}, ""),
        ({"a": packed((4, "float32", bytes(16)))}, ""),
        ({"a": packed(((4,), ["float32"], bytes(16)))}, ""),
        ({"a": packed(((4,), "float32", 16))}, ""),
        ({"a": packed(((4,), "float32"))}, ""),
        ({"a": packed({})}, ""),
        ({"a": msgpack.ExtType(1, b"")}, ""),
        ({"a": msgpack.ExtType(2, bytes(3))}, "an extension of type 2"),
        ({"a": {"b": 3}}, "'a/b' is not an array"),
        ({"a": [packed(FOUR)]}, "'a' is not an array"),
        ({"a/b": packed(FOUR), "a": {"b": packed(FOUR)}}, "'a/b' is there twice"),
        ([packed(FOUR)], "not a mapping"),
        (packed(FOUR), "not a mapping"),
        ({CHUNKED: True, "shape": {}, "chunks": {"0": packed(FOUR)}}, ""),
        ({"a": {CHUNKED: True, "shape": {"0": 5}, "chunks": {"0": packed(FOUR)}}}, ""),
        ({"a": {CHUNKED: True, "shape": {"0": 4}, "chunks": {"1": packed(FOUR)}}}, ""),
        ({"a": {CHUNKED: True, "shape": {"0": 4}}}, ""),
        ({"a": {CHUNKED: True, "shape": 4, "chunks": [packed(FOUR)]}}, ""),
    ],
)
def test_contents_of_another_kind(content, message):
    write_release(golden("pixel_like")[1], {})
    Path("release/ema_params.msgpack").write_bytes(msgpack.packb(content))
    line = refusal(Path("release"), Path("run"), ROOT / "recipes", write_recipe(golden("pixel_like")[1]))
    start = "release/ema_params.msgpack: not a complete file of Flax parameters: "
    assert line.startswith(start + message) and len(line) > len(start)


def test_a_file_that_is_cut_short_or_something_else():
    whole = msgpack.packb(tree({"a/b": FOUR, "a/c": FOUR}))
    nested = b"\x81\xa1a" * 3000 + b"\xc0"
    for content in (*(whole[:size] for size in range(len(whole))), whole + b"\x80", b"\xc1", b"no weights", nested):
        Path("a.msgpack").write_bytes(content)
        with pytest.raises(UserError, match=r"^a\.msgpack: not a complete file of Flax parameters: .") as caught:
            read_flax(Path("a.msgpack"))
        assert str(caught.value).isprintable()
    with pytest.raises(UserError, match=r"^b\.msgpack: no such weights file$"):
        read_flax(Path("b.msgpack"))


def test_without_the_package(monkeypatch):
    config = golden("pixel_like")[1]
    recipe = write_recipe(config)
    write_release(config, {})
    monkeypatch.setitem(sys.modules, "msgpack", None)
    line = refusal(Path("release"), Path("run"), ROOT / "recipes", recipe)
    assert line == 'this feature needs the package \'msgpack\': pip install "genflow[convert]"'


# Conversion


@pytest.mark.parametrize("name", ["latent_like", "pixel_like"])
def test_a_generator_becomes_a_run_with_its_samples(name):
    archive, config, arrays = golden(name)
    folder = write_release(config, arrays)
    recipe = write_recipe(config)
    assert convert_drifting(folder, Path("runs/drift"), ROOT / "recipes", recipe) == recipe
    assert sorted(os.listdir("runs/drift")) == ["generator.safetensors", "metrics.json", "recipe.yaml"]
    assert load_recipe("runs/drift/recipe.yaml").to_dict() == load_recipe(recipe).to_dict()
    metrics = json.loads(Path("runs/drift/metrics.json").read_text())
    assert metrics["converted_from"]["file"] == "ema_params.msgpack"
    assert metrics["generator"]["generator_params"] == sum(array.size for array in arrays.values())
    generator = load_generator(open_run(Path("runs/drift")), Path("runs/drift"))
    labels, style = (torch.from_numpy(archive[key]).long() for key in ("labels", "noise_labels"))
    condition = Condition(labels=labels, guidance=torch.from_numpy(archive["cfg_scale"]), style=style)
    expected = channels_first(archive["samples"])
    with torch.no_grad():
        found = generator(channels_first(archive["noise"]), condition)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("decoder", [True, False])
def test_an_encoder_becomes_a_run_without_its_decoder(decoder):
    network, arrays = random_encoder()
    arrays = {path: array for path, array in arrays.items() if decoder or not path.startswith("decoder/")}
    recipe = write_recipe(ENCODER)
    convert_drifting(write_release(ENCODER, arrays), Path("run"), ROOT / "recipes", recipe)
    encoder = load_method(open_run(Path("run")), Path("run")).encoder
    expected = {name: value for name, value in network.state_dict().items() if not name.startswith("decoder.")}
    found = encoder.state_dict()
    assert found.keys() == expected.keys() and all(found[name].equal(value) for name, value in expected.items())


def test_bfloat16_weights_are_exact():
    _, config, arrays = golden("pixel_like")
    narrow = {path: torch.from_numpy(array).bfloat16() for path, array in arrays.items()}
    content = {
        path: packed((tuple(value.shape), "bfloat16", value.view(torch.int16).numpy().tobytes()))
        for path, value in narrow.items()
    }
    convert_drifting(write_release(config, content), Path("run"), ROOT / "recipes", write_recipe(config))
    state = load_generator(open_run(Path("run")), Path("run")).network.state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert state["labels.weight"].equal(narrow["Embed_0/embedding"].float())


# Which model it is

GENERATOR = {
    "num_classes": 1000,
    "noise_classes": 64,
    "noise_coords": 32,
    "n_cls_tokens": 16,
    "mlp_ratio": 4.0,
    **dict.fromkeys(("use_qknorm", "use_swiglu", "use_rope", "use_rmsnorm", "use_bf16"), True),
}
LATENT = {"input_size": 32, "patch_size": 2, "in_channels": 4, "out_channels": 4}
PIXEL = {"input_size": 256, "patch_size": 16, "in_channels": 3, "out_channels": 3}
BASE = {"cond_dim": 768, "hidden_size": 768, "depth": 12, "num_heads": 12}
LARGE = {"cond_dim": 1024, "hidden_size": 1024, "depth": 24, "num_heads": 16}
MAE = {"num_classes": 1000, "layers": [3, 4, 6, 3], "patch_size": 2, "dropout_prob": 0.0, "use_bf16": True}
RELEASED = {
    "drift_ablation_imagenet": {**GENERATOR, **LATENT, **BASE, "attn_fp32": True},
    "drift_b2_imagenet": {**GENERATOR, **LATENT, **BASE, "attn_fp32": False},
    "drift_l2_imagenet": {**GENERATOR, **LATENT, **LARGE, "attn_fp32": False},
    "drift_b16_imagenet_pixels": {**GENERATOR, **PIXEL, **BASE, "attn_fp32": True},
    "drift_l16_imagenet_pixels": {**GENERATOR, **PIXEL, **LARGE, "attn_fp32": True},
    "mae_latent_256": {**MAE, "in_channels": 4, "base_channels": 256, "input_patch_size": 1},
    "mae_latent_640": {**MAE, "in_channels": 4, "base_channels": 640, "input_patch_size": 1},
    "mae_pixel_640": {**MAE, "in_channels": 3, "base_channels": 640, "input_patch_size": 8},
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_are_told_by_their_configuration(name):
    """The recipe is chosen, and its network is the one of spec 2.1 and 5.1; then an array is missing."""
    write_release(RELEASED[name], {})
    first = "encoder/conv1/kernel" if name.startswith("mae") else "LightningDiT_0/pos_embed"
    recipe = ROOT / "recipes" / f"{name}.yaml"
    line = refusal(Path("release"), Path("run"), ROOT / "recipes")
    assert line == f"release/ema_params.msgpack: does not fit {recipe}: '{first}' is missing from the file"


def test_what_the_configuration_leaves_out_is_as_in_the_published_code():
    config = dict(RELEASED["drift_ablation_imagenet"])
    del config["attn_fp32"], config["use_rope"]
    write_release(config, {})
    assert refusal(Path("release"), Path("run"), ROOT / "recipes") == (
        f"release/metadata.json: does not fit {ROOT / 'recipes' / 'drift_ablation_imagenet.yaml'}: "
        "rotary is False in model_config, True there"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 4}, "heads is 4 in model_config, 3 there"),
        ({"cond_dim": 24}, "condition_width is 24 in model_config, 20 there"),
        ({"in_channels": 4}, "channels is 4 in model_config, 3 there"),
        ({"noise_classes": 0}, "style_codebooks is 0 in model_config, 2 there"),
        ({"noise_coords": 1}, "style_codebooks is 1 in model_config, 2 there"),
        ({"n_cls_tokens": 0}, "context_tokens is 0 in model_config, 2 there"),
        ({"use_rope": False}, "rotary is False in model_config, True there"),
        ({"use_qknorm": False}, "qk_norm is False in model_config, True there"),
        ({"use_rmsnorm": False}, "norm is 'layer' in model_config, 'rms' there"),
        ({"use_swiglu": False}, "feedforward is 'gelu' in model_config, 'swiglu' there"),
        ({"mlp_ratio": "4"}, "feedforward_ratio is '4' in model_config, 4.0 there"),
        ({"use_bf16": True, "attn_fp32": False}, "attention_precision is 'bfloat16' in model_config, 'float32' there"),
        ({"hidden_size": [24]}, "width is [24] in model_config, 24 there"),
    ],
)
def test_a_configuration_that_does_not_fit_the_recipe(change, message):
    _, config, arrays = golden("pixel_like")
    recipe = write_recipe(config)
    write_release({**config, **change}, arrays)
    line = refusal(Path("release"), Path("run"), ROOT / "recipes", recipe)
    assert line == f"release/metadata.json: does not fit tiny.yaml: {message}"


def test_bfloat16_attention_fits_its_recipe():
    _, config, arrays = golden("pixel_like")
    write_release({**config, "use_bf16": True, "attn_fp32": False}, arrays)
    recipe = write_recipe(config, attention_precision="bfloat16")
    convert_drifting(Path("release"), Path("run"), ROOT / "recipes", recipe)
    assert load_recipe("run/recipe.yaml").model.backbone.attention_precision == "bfloat16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected a folder with metadata.json and ema_params.msgpack"),
        ("", "not the description of a released model: expected JSON with model_config"),
        ("[]", "not the description"),
        ("{}", "not the description"),
        ('{"model_config": 3}', "not the description"),
        ('{"model_config": [1]}', "not the description"),
        ("[" * 100_000, "not the description"),
        ('{"model_config": {}}', "model_config.input_size: missing"),
        ('{"model_config": {"base_channels": [1]}}', "model_config is of a model that was not released; give its rec"),
        (
            '{"model_config": {"input_size": 8, "patch_size": 2, "hidden_size": 32}}',
            "model_config is of a model that was not released; give its recipe with --recipe",
        ),
    ],
)
def test_other_descriptions(text, message):
    write_release({}, {})
    os.remove("release/metadata.json")
    if text is not None:
        Path("release/metadata.json").write_text(text)
    line = refusal(Path("release"), Path("run"), ROOT / "recipes")
    assert line.startswith(f"release/metadata.json: {message}")


def test_a_recipe_of_something_else():
    write_release(golden("pixel_like")[1], {})
    recipe = ROOT / "recipes" / "itarflow_digits.yaml"
    line = refusal(Path("release"), Path("run"), ROOT / "recipes", recipe)
    assert line == (
        f"{recipe}: model: trains a TARFlow, Drifting's weights are a LightningDiT's or a LatentMAE's"
    )


# Arrays that do not fit

ATTENTION = "LightningDiT_0/blocks_0/Attention_0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(f"{ATTENTION}/k_norm/weight"), f"'{ATTENTION}/k_norm/weight' is missing from the file"),
        (
            lambda a: a.pop("LightningDiT_0/blocks_0/SwiGLUFFN_0/TorchLinear_1/Dense_0/bias"),
            "'LightningDiT_0/blocks_0/SwiGLUFFN_0/TorchLinear_1/Dense_0/bias' is missing from the file",
        ),
        (lambda a: a.update({"noise_embeds_2/embedding": FOUR}), "'noise_embeds_2/embedding' is not in the model"),
        (lambda a: a.update({"params/fc/bias": FOUR}), "'params/fc/bias' is not in the model"),
        (
            lambda a: a.update({f"{ATTENTION}/TorchLinear_0/Dense_0/kernel": np.zeros((72, 24), dtype=np.float32)}),
            f"'{ATTENTION}/TorchLinear_0/Dense_0/kernel' has shape (72, 24), expected (24, 72)",
        ),
        (
            lambda a: a.update({"LightningDiT_0/pos_embed": a["LightningDiT_0/pos_embed"][0]}),
            "'LightningDiT_0/pos_embed' has shape (16, 24), expected (1, 16, 24)",
        ),
        (lambda a: a.update({"Embed_0/embedding": FOUR[0][...]}), "'Embed_0/embedding' has shape (), expected (5, 20)"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    _, config, arrays = golden("pixel_like")
    change(arrays)
    line = refusal(write_release(config, arrays), Path("run"), ROOT / "recipes", write_recipe(config))
    assert line.startswith(f"release/ema_params.msgpack: does not fit tiny.yaml: {message}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_arrays_that_are_not_finite(value):
    _, config, arrays = golden("pixel_like")
    broken = arrays["RMSNorm_0/weight"].copy()
    broken[3] = value
    write_release(config, {**arrays, "RMSNorm_0/weight": broken})
    line = refusal(Path("release"), Path("run"), ROOT / "recipes", write_recipe(config))
    assert line == "release/ema_params.msgpack: 'RMSNorm_0/weight' is not finite"


def test_half_a_decoder():
    _, arrays = random_encoder()
    del arrays["decoder/up21/refine/gn/bias"]
    line = refusal(write_release(ENCODER, arrays), Path("run"), ROOT / "recipes", write_recipe(ENCODER))
    assert line.endswith("does not fit tiny.yaml: 'decoder/up21/refine/gn/bias' is missing from the file")


def test_an_encoder_for_a_generator():
    _, arrays = random_encoder()
    _, config, _ = golden("pixel_like")
    line = refusal(write_release(config, arrays), Path("run"), ROOT / "recipes", write_recipe(config))
    assert line.endswith("does not fit tiny.yaml: 'LightningDiT_0/pos_embed' is missing from the file")


def test_nothing_is_overwritten():
    _, config, arrays = golden("pixel_like")
    write_release(config, arrays)
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    line = refusal(Path("release"), Path("run"), ROOT / "recipes", write_recipe(config))
    assert line == "run: is there already; name another folder"
