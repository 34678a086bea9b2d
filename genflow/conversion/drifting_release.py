"""A released folder of Drifting's weights, recognised and checked, to a run folder."""

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genflow.analysis.description import build_on_meta
from genflow.backbones.lightning_dit import LightningDiT
from genflow.config.graph import ComponentGraph
from genflow.conversion.drifting import from_jax, to_jax
from genflow.conversion.flax_file import read_flax
from genflow.errors import UserError, shown
from genflow.feature_encoders.latent_mae import LatentMAE
from genflow.runs.converted import check_free, write_run
from genflow.weights import check_state

CONFIG_FILE = "metadata.json"
WEIGHTS_FILE = "ema_params.msgpack"
#: Recipes of the released generators by side of the input, side of a patch, width, and precision of attention.
_GENERATORS = {
    (32, 2, 768, "float32"): "drift_ablation_imagenet",
    (32, 2, 768, "bfloat16"): "drift_b2_imagenet",
    (32, 2, 1024, "bfloat16"): "drift_l2_imagenet",
    (256, 16, 768, "float32"): "drift_b16_imagenet_pixels",
    (256, 16, 1024, "float32"): "drift_l16_imagenet_pixels",
}
#: Recipes of the released encoders by width and side of a patch.
_ENCODERS = {(256, 1): "mae_latent_256", (640, 1): "mae_latent_640", (640, 8): "mae_pixel_640"}
#: Arguments of LightningDiT and of LatentMAE by the entries of ``model_config`` that say them.
_GENERATOR_NAMES = {
    "input_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "width",
    "depth": "depth",
    "num_heads": "heads",
    "in_channels": "channels",
    "num_classes": "num_classes",
    "cond_dim": "condition_width",
    "n_cls_tokens": "context_tokens",
    "mlp_ratio": "feedforward_ratio",
    "use_rope": "rotary",
    "use_qknorm": "qk_norm",
}
_ENCODER_NAMES = {
    "in_channels": "channels",
    "base_channels": "width",
    "layers": "depths",
    "input_patch_size": "patch_size",
    "num_classes": "num_classes",
}
#: More blocks than any stage has.
_NEVER = 2**31 - 1
#: Arguments of LatentMAE by the entries of ``activation_kwargs``, which choose among its features.
_FEATURE_NAMES = {
    "patch_mean_size": "windows",
    "patch_std_size": "deviation_windows",
    "use_mean": "pooled",
    "use_std": "pooled_deviation",
    "every_k_block": "block_interval",
}
#: Taken for an entry of ``model_config`` that is not there: what can be left out of the network is out.
_DEFAULTS = {
    **dict.fromkeys(("use_rmsnorm", "use_swiglu", "use_rope", "use_qknorm", "use_bf16"), False),
    "attn_fp32": True,
    "n_cls_tokens": 0,
    "noise_classes": 0,
    "noise_coords": 1,
    "input_patch_size": 1,
}


def convert_drifting(folder: Path, out: Path, recipes: Path, recipe: Path | None = None) -> Path:
    """Write the run folder ``out`` with the weights of ``folder``; returns the recipe's file.

    An encoder's decoder, which only training needs, may be in the file and is left out.

    Args:
        folder: a release of the JAX code: ``metadata.json``, whose ``model_config`` describes the model, and
            ``ema_params.msgpack``.
        out: not there, or an empty folder.
        recipes: the folder of the recipes of the released models.
        recipe: the recipe of another model.

    Raises:
        UserError: a file is missing or damaged, or they are not the network of the recipe; nothing has been written.
    """
    check_free(out)
    config = _read_config(folder / CONFIG_FILE)
    if recipe is None:
        recipe = recipes / f"{_find_recipe(folder / CONFIG_FILE, config)}.yaml"
    graph = ComponentGraph.load(recipe)
    network = graph.build_artifact()
    if not isinstance(network, LightningDiT | LatentMAE):
        name = type(network).__name__
        raise UserError(f"{recipe}: model: trains a {name}, Drifting's weights are a LightningDiT's or a LatentMAE's")
    try:
        kept = to_jax(network.state_dict())
    except ValueError as error:
        raise UserError(f"{recipe}: not a network of Drifting: {error}") from None
    _check_config(folder / CONFIG_FILE, config, graph, recipe)
    file = folder / WEIGHTS_FILE
    arrays = read_flax(file)
    has_decoder = any(path.startswith("decoder/") for path in arrays)
    try:
        check_state(to_jax(build_on_meta(graph).artifact_module.state_dict()) if has_decoder else kept, arrays)
    except ValueError as error:
        raise UserError(f"{file}: does not fit {recipe}: {error}") from None
    for path, value in arrays.items():
        if not value.float().isfinite().all():
            raise UserError(f"{file}: '{path}' is not finite")
    state = from_jax({path: arrays[path] for path in kept})
    del arrays
    # Every array is given back as soon as its copy is there.
    weights = {name: state.pop(name).float().contiguous() for name in list(state)}
    write_run(out, graph, weights, file)
    return recipe


def _read_config(file: Path) -> dict[str, Any]:
    """The ``model_config`` of a release, with what it leaves out."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["model_config"]
        return {**_DEFAULTS, **config}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file}: not the description of a released model: expected JSON with model_config") from None


def _find_recipe(file: Path, config: Mapping[str, Any]) -> str:
    is_encoder = "base_channels" in config
    known = _ENCODERS if is_encoder else _GENERATORS
    names = ("base_channels", "input_patch_size") if is_encoder else ("input_size", "patch_size", "hidden_size")
    for name in names:
        if name not in config:
            raise UserError(f"{file}: model_config.{name}: missing")
    found = tuple(config[name] for name in names) + (() if is_encoder else (_attention_precision(config),))
    recipe = next((recipe for key, recipe in known.items() if key == found), None)
    if recipe is None:
        raise UserError(f"{file}: model_config is of a model that was not released; give its recipe with --recipe")
    return recipe


def _check_config(file: Path, config: Mapping[str, Any], graph: ComponentGraph, recipe: Path) -> None:
    """See that the recipe's network is what ``model_config`` says; shapes do not tell all of it."""
    node = graph.artifact
    bound = inspect.signature(node.cls).bind(**node.arguments)
    bound.apply_defaults()
    ours = bound.arguments
    if issubclass(node.cls, LightningDiT):
        ours["condition_width"] = ours["condition_width"] or ours["width"]
        theirs = generator_arguments(config)
    else:
        for name, means in (("deviation_windows", "windows"), ("pooled_deviation", "pooled")):
            ours[name] = ours[means] if ours[name] is None else ours[name]
        theirs = encoder_arguments(config)
    for name, value in theirs.items():
        if ours[name] != (tuple(value) if isinstance(value, list) else value):
            raise UserError(
                f"{file}: does not fit {recipe}: {name} is {shown(value)} in model_config, {shown(ours[name])} there"
            )


def generator_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of LightningDiT that the configuration of a generator says."""
    return {
        **_renamed(config, _GENERATOR_NAMES),
        "style_codebooks": config["noise_coords"] if config["noise_classes"] else 0,
        **({"style_entries": config["noise_classes"]} if config["noise_classes"] else {}),
        "norm": "rms" if config["use_rmsnorm"] else "layer",
        "feedforward": "swiglu" if config["use_swiglu"] else "gelu",
        "attention_precision": _attention_precision(config),
    }


def encoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of LatentMAE that the configuration of an encoder says, with its features if it chooses any."""
    chosen = config.get("activation_kwargs")
    features = _renamed(chosen, _FEATURE_NAMES) if isinstance(chosen, Mapping) else {}
    if features.get("block_interval") == math.inf:  # no block's output
        features["block_interval"] = _NEVER
    return _renamed(config, _ENCODER_NAMES) | features


def _renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The entries that are there, under our names."""
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def _attention_precision(config: Mapping[str, Any]) -> str:
    return "bfloat16" if config["use_bf16"] and not config["attn_fp32"] else "float32"
