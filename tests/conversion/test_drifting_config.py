"""Which model a released folder of Drifting holds, and descriptions that do not fit."""

import os
from pathlib import Path

import pytest

from genflow.config.recipe import load_recipe
from genflow.conversion.drifting_release import encoder_arguments
from genflow.feature_encoders import LatentMAE

RECIPES = Path(__file__).parents[2] / "recipes"
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
#: In the words of the vectors' configurations, with the sizes of docs/drifting.md, D2 and D11.
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
def test_released_models_are_told_by_their_configuration(release, name):
    """The recipe is found and its network is the configuration's; then the arrays are missing."""
    release.write(RELEASED[name], {})
    first = "encoder/conv1/kernel" if name.startswith("mae") else "LightningDiT_0/pos_embed"
    recipe = RECIPES / f"{name}.yaml"
    assert release.refusal() == (
        f"release/ema_params.msgpack: does not fit {recipe}: '{first}' is missing from the file"
    )


def test_what_the_configuration_leaves_out_is_off(release):
    config = dict(RELEASED["drift_ablation_imagenet"])
    del config["attn_fp32"], config["use_rope"]
    release.write(config, {})
    recipe = RECIPES / "drift_ablation_imagenet.yaml"
    assert release.refusal() == (
        f"release/metadata.json: does not fit {recipe}: rotary is False in model_config, True there"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 4}, "heads is 4 in model_config, 3 there"),
        ({"cond_dim": 24}, "condition_width is 24 in model_config, 20 there"),
        ({"in_channels": 4}, "channels is 4 in model_config, 3 there"),
        ({"noise_classes": 0}, "style_codebooks is 0 in model_config, 2 there"),
        ({"noise_coords": 1}, "style_codebooks is 1 in model_config, 2 there"),
        ({"noise_classes": 5}, "style_entries is 5 in model_config, 4 there"),
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
def test_a_configuration_that_does_not_fit_the_recipe(release, change, message):
    _, config, arrays = release.golden("pixel_like")
    release.write({**config, **change}, arrays)
    line = release.refusal(release.recipe(config))
    assert line == f"release/metadata.json: does not fit tiny.yaml: {message}"


def test_an_encoder_of_another_depth(release):
    release.write({**RELEASED["mae_latent_256"], "layers": [3, 4, 6]}, {})
    assert release.refusal().endswith("mae_latent_256.yaml: depths is [3, 4, 6] in model_config, (3, 4, 6, 3) there")


CHOSEN = {"patch_mean_size": [2], "patch_std_size": [4], "use_mean": False, "use_std": True, "every_k_block": 3}


def test_features_that_a_configuration_chooses():
    chosen = encoder_arguments({**RELEASED["mae_latent_256"], "activation_kwargs": CHOSEN})
    encoder = LatentMAE(**{**chosen, "image_size": 32, "width": 8, "depths": (3, 1)})
    names = {name.removeprefix("layer1_blk3") for name in encoder.feature_names if name.startswith("layer1_blk")}
    assert names == {"", "_mean_2", "_std", "_std_4"}
    unlimited = encoder_arguments({"activation_kwargs": {"every_k_block": float("inf")}})
    whole = LatentMAE(4, 32, 8, (3, 1), **unlimited)
    assert not [name for name in whole.feature_names if "blk" in name]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"patch_mean_size": [2, 4], "patch_std_size": [2, 4], "use_mean": True, "use_std": True}, None),
        (CHOSEN, "windows is [2] in model_config, (2, 4) there"),
        ({"patch_std_size": [4]}, "deviation_windows is [4] in model_config, (2, 4) there"),
        ({"use_std": False}, "pooled_deviation is False in model_config, True there"),
        ({"every_k_block": "all"}, "block_interval is 'all' in model_config, 2 there"),
        (3, None),  # says nothing
    ],
)
def test_features_are_those_of_the_recipe(release, chosen, message):
    release.write({**RELEASED["mae_latent_256"], "activation_kwargs": chosen}, {})
    expected = f"mae_latent_256.yaml: {message}" if message else "'encoder/conv1/kernel' is missing from the file"
    assert release.refusal().endswith(expected)


def test_bfloat16_attention_fits_its_recipe(release):
    _, config, arrays = release.golden("pixel_like")
    release.write({**config, "use_bf16": True, "attn_fp32": False}, arrays)
    release.convert(release.recipe(config, attention_precision="bfloat16"))
    assert load_recipe("run/recipe.yaml")["model"]["backbone"]["attention_precision"] == "bfloat16"


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
def test_other_descriptions(release, text, message):
    release.write({}, {})
    os.remove("release/metadata.json")
    if text is not None:
        Path("release/metadata.json").write_text(text)
    assert release.refusal().startswith(f"release/metadata.json: {message}")
