"""Released folders of Drifting become runs that compute the same; arrays that do not fit are refused."""

import json
import os
from pathlib import Path

import pytest
import torch

from genflow.condition import Condition
from genflow.config.recipe import load_recipe
from genflow.conversion.drifting import to_jax
from genflow.feature_encoders.latent_mae import LatentMAE
from genflow.runs.folder import open_run

TOLERANCE = 1e-5  # of the largest entry, as the README of the vectors says
RUN = Path("run")
ENCODER = {"num_classes": 5, "in_channels": 3, "base_channels": 8, "layers": [1, 2, 1, 1], "input_patch_size": 2}


def random_encoder():
    """An encoder with its decoder, and its arrays."""
    torch.manual_seed(0)
    network = LatentMAE(3, 32, width=8, depths=[1, 2, 1, 1], patch_size=2, num_classes=5, decoder=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network, to_jax(network.state_dict())


def channels_first(array):
    return torch.from_numpy(array).movedim(-1, 1).contiguous()


@pytest.mark.parametrize("name", ["latent_like", "pixel_like"])
def test_a_generator_becomes_a_run_with_its_samples(release, name):
    archive, config, arrays = release.golden(name)
    release.write(config, arrays)
    recipe = release.recipe(config)
    assert release.convert(recipe) == recipe
    assert sorted(os.listdir(RUN)) == ["generator.safetensors", "metrics.json", "recipe.yaml"]
    assert load_recipe(RUN / "recipe.yaml") == load_recipe(recipe)
    metrics = json.loads((RUN / "metrics.json").read_text())
    assert metrics["converted_from"]["file"] == "ema_params.msgpack"
    assert metrics["generator"]["generator_params"] == sum(value.numel() for value in arrays.values())
    generator = open_run(RUN).generator()
    labels, style = (torch.from_numpy(archive[key]).long() for key in ("labels", "noise_labels"))
    condition = Condition(labels=labels, guidance=torch.from_numpy(archive["cfg_scale"]), style=style)
    expected = channels_first(archive["samples"])
    with torch.no_grad():
        found = generator(channels_first(archive["noise"]), condition)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("decoder", [True, False])
def test_an_encoder_becomes_a_run_without_its_decoder(release, decoder):
    network, arrays = random_encoder()
    arrays = {path: value for path, value in arrays.items() if decoder or not path.startswith("decoder/")}
    release.write(ENCODER, arrays)
    release.convert(release.recipe(ENCODER))
    expected = {name: value for name, value in network.state_dict().items() if not name.startswith("decoder.")}
    found = open_run(RUN).method().encoder.state_dict()
    assert found.keys() == expected.keys() and all(found[name].equal(value) for name, value in expected.items())


def test_bfloat16_weights_are_exact(release):
    _, config, arrays = release.golden("pixel_like")
    narrow = {path: value.bfloat16() for path, value in arrays.items()}
    release.write(config, narrow)
    release.convert(release.recipe(config))
    state = open_run(RUN).generator().network.state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert state["labels.weight"].equal(narrow["Embed_0/embedding"].float())


BLOCK = "LightningDiT_0/blocks_0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(f"{BLOCK}/Attention_0/k_norm/weight"), f"'{BLOCK}/Attention_0/k_norm/weight' is missing from"),
        (
            lambda a: a.pop(f"{BLOCK}/SwiGLUFFN_0/TorchLinear_1/Dense_0/bias"),
            f"'{BLOCK}/SwiGLUFFN_0/TorchLinear_1/Dense_0/bias' is missing from the file",
        ),
        (lambda a: a.update({"noise_embeds_2/embedding": torch.zeros(4)}), "'noise_embeds_2/embedding' is not in the"),
        (lambda a: a.update({"params/fc/bias": torch.zeros(4)}), "'params/fc/bias' is not in the model"),
        (
            lambda a: a.update({f"{BLOCK}/Attention_0/TorchLinear_0/Dense_0/kernel": torch.zeros(72, 24)}),
            f"'{BLOCK}/Attention_0/TorchLinear_0/Dense_0/kernel' has shape (72, 24), expected (24, 72)",
        ),
        (
            lambda a: a.update({"LightningDiT_0/pos_embed": a["LightningDiT_0/pos_embed"][0]}),
            "'LightningDiT_0/pos_embed' has shape (16, 24), expected (1, 16, 24)",
        ),
        (lambda a: a.update({"Embed_0/embedding": torch.zeros(())}), "'Embed_0/embedding' has shape (), expected (5,"),
        (lambda a: a.clear(), "'LightningDiT_0/pos_embed' is missing from the file"),
    ],
)
def test_arrays_that_do_not_fit(release, change, message):
    _, config, arrays = release.golden("pixel_like")
    change(arrays)
    release.write(config, arrays)
    line = release.refusal(release.recipe(config))
    assert line.startswith(f"release/ema_params.msgpack: does not fit tiny.yaml: {message}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_arrays_that_are_not_finite(release, value):
    _, config, arrays = release.golden("pixel_like")
    arrays["RMSNorm_0/weight"] = arrays["RMSNorm_0/weight"].double()
    arrays["RMSNorm_0/weight"][3] = value
    release.write(config, arrays)
    assert release.refusal(release.recipe(config)) == "release/ema_params.msgpack: 'RMSNorm_0/weight' is not finite"


def test_half_a_decoder(release):
    _, arrays = random_encoder()
    del arrays["decoder/up21/refine/gn/bias"]
    release.write(ENCODER, arrays)
    line = release.refusal(release.recipe(ENCODER))
    assert line.endswith("does not fit tiny.yaml: 'decoder/up21/refine/gn/bias' is missing from the file")


def test_a_file_that_is_cut_short(release):
    _, config, arrays = release.golden("pixel_like")
    release.write(config, arrays)
    file = Path("release/ema_params.msgpack")
    file.write_bytes(file.read_bytes()[:-1])
    line = release.refusal(release.recipe(config))
    assert line.startswith("release/ema_params.msgpack: not a complete file of Flax parameters: ")


def test_an_encoder_for_a_generator(release):
    _, config, _ = release.golden("pixel_like")
    release.write(config, random_encoder()[1])
    line = release.refusal(release.recipe(config))
    assert line.endswith("does not fit tiny.yaml: 'LightningDiT_0/pos_embed' is missing from the file")


def test_recipes_of_something_else(release):
    release.write({}, {})
    deeper = release.recipe({**ENCODER, "layers": [1, 1, 1, 1, 1]})
    expected = "tiny.yaml: not a network of Drifting: 'stage_norms.4.weight' has no counterpart"
    assert release.refusal(deeper) == expected
    recipe = Path(__file__).parents[2] / "recipes" / "itarflow_digits.yaml"
    expected = f"{recipe}: model: trains a TARFlow, Drifting's weights are a LightningDiT's or a LatentMAE's"
    assert release.refusal(recipe) == expected


def test_nothing_is_overwritten(release):
    _, config, arrays = release.golden("pixel_like")
    release.write(config, arrays)
    RUN.mkdir()
    (RUN / "notes.txt").write_text("mine")
    assert release.refusal(release.recipe(config)) == "run: is there already; name another folder"
