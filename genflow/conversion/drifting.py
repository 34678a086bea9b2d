"""Names and shapes of Drifting's released weights in terms of LightningDiT and LatentMAE (docs/model_zoo.md)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from genflow.conversion.names import translate

_BLOCK = "LightningDiT_0/blocks_{}/"
_STAGE = "encoder/stages_{}/layers_{}/"
_UPS = ("decoder/up43/", "decoder/up32/", "decoder/up21/", "decoder/up10/")
#: Ours for theirs, modules; braces hold numbers that both share. The generator's names are none of the encoder's.
_MODULES = {
    "Embed_0": "labels",
    "noise_embeds_{}": "style.{}",
    "TimestepEmbedder_0/TorchLinear_0/Dense_0": "guidance.0",
    "TimestepEmbedder_0/TorchLinear_1/Dense_0": "guidance.2",
    "RMSNorm_0": "guidance_norm",
    "LightningDiT_0/TorchLinear_0/Dense_0": "patch_embedding",
    "LightningDiT_0/TorchLinear_1/Dense_0": "context_embedding",
    f"{_BLOCK}TorchLinear_0/Dense_0": "layers.{}.modulation",
    f"{_BLOCK}RMSNorm_0": "layers.{}.attention_norm",
    f"{_BLOCK}Attention_0/TorchLinear_0/Dense_0": "layers.{}.attention.qkv",
    f"{_BLOCK}Attention_0/TorchLinear_1/Dense_0": "layers.{}.attention.out",
    f"{_BLOCK}Attention_0/q_norm": "layers.{}.attention.query_norm",
    f"{_BLOCK}Attention_0/k_norm": "layers.{}.attention.key_norm",
    f"{_BLOCK}RMSNorm_1": "layers.{}.feedforward_norm",
    f"{_BLOCK}StandardMLP_0/TorchLinear_0/Dense_0": "layers.{}.feedforward.up",
    f"{_BLOCK}StandardMLP_0/TorchLinear_1/Dense_0": "layers.{}.feedforward.down",
    f"{_BLOCK}SwiGLUFFN_0/TorchLinear_0/Dense_0": "layers.{}.feedforward.gate_up.0",
    f"{_BLOCK}SwiGLUFFN_0/TorchLinear_1/Dense_0": "layers.{}.feedforward.gate_up.1",
    f"{_BLOCK}SwiGLUFFN_0/TorchLinear_2/Dense_0": "layers.{}.feedforward.down",
    "LightningDiT_0/FinalLayer_0/TorchLinear_0/Dense_0": "modulation",
    "LightningDiT_0/FinalLayer_0/RMSNorm_0": "norm",
    "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0": "output",
    "encoder/conv1": "stem.conv",
    "encoder/gn1": "stem.norm",
    f"{_STAGE}conv1": "stages.{}.{}.conv1",
    f"{_STAGE}gn1": "stages.{}.{}.norm1",
    f"{_STAGE}conv2": "stages.{}.{}.conv2",
    f"{_STAGE}gn2": "stages.{}.{}.norm2",
    f"{_STAGE}proj_conv": "stages.{}.{}.shortcut.conv",
    f"{_STAGE}proj_gn": "stages.{}.{}.shortcut.norm",
    **{f"encoder/layer{stage + 1}_norm": f"stage_norms.{stage}" for stage in range(4)},
    "decoder/bridge/conv": "decoder.bridge.conv",
    "decoder/bridge/gn": "decoder.bridge.norm",
    **{f"{up}concat_norm_fn": f"decoder.ups.{index}.norm" for index, up in enumerate(_UPS)},
    **{f"{up}proj/conv": f"decoder.ups.{index}.project.conv" for index, up in enumerate(_UPS)},
    **{f"{up}proj/gn": f"decoder.ups.{index}.project.norm" for index, up in enumerate(_UPS)},
    **{f"{up}refine/conv": f"decoder.ups.{index}.refine.conv" for index, up in enumerate(_UPS)},
    **{f"{up}refine/gn": f"decoder.ups.{index}.refine.norm" for index, up in enumerate(_UPS)},
    "decoder/head": "decoder.output",
    "fc": "classifier",
}
#: The same for tables, whose first axis is a batch of one in theirs.
_TABLES = {"LightningDiT_0/pos_embed": "positions", "LightningDiT_0/cls_embed": "context_positions"}
#: Theirs for the ends of our names; linear maps and convolutions have kernels.
_WEIGHTS = ("kernel", "embedding", "scale", "weight")


def from_jax(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published code's parameters of a generator or an encoder, under our names.

    Args:
        arrays: by paths joined by ``/``, all or some of them. An encoder's decoder and classifier may be among them.

    Returns:
        Views of the arrays, but for what we stack.

    Raises:
        ValueError: a path that neither network has.
        KeyError: only a part of what we stack is there.
    """
    converted = {}
    for path, value in arrays.items():
        if path in _TABLES:
            converted[_TABLES[path]] = value.squeeze(0)
            continue
        module, _, end = path.rpartition("/")
        ours = translate(module, _MODULES) if end in (*_WEIGHTS, "bias") else None
        if ours is None:
            raise ValueError(f"'{path}' has no counterpart")
        name = f"{ours}.{'bias' if end == 'bias' else 'weight'}"
        converted[name] = value if end != "kernel" else value.t() if value.dim() == 2 else value.permute(3, 2, 0, 1)
    for stack in {re.sub(r"(?<=\.gate_up\.)\d", "{}", name) for name in converted if ".gate_up." in name}:
        converted[stack.replace("{}.", "")] = torch.cat([converted.pop(stack.format(part)) for part in range(2)])
    return converted


def to_jax(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_jax` for networks with SwiGLU; also of weights on the meta device, all views.

    Raises:
        ValueError: a name that the published networks do not have.
    """
    modules, tables = ({ours: theirs for theirs, ours in names.items()} for names in (_MODULES, _TABLES))
    converted = {}
    for name, whole in state.items():
        if name in tables:
            converted[tables[name]] = whole.unsqueeze(0)
            continue
        module, _, end = name.rpartition(".")
        parts = {module: whole}
        if module.endswith(".gate_up"):
            parts = {f"{module}.{index}": part for index, part in enumerate(whole.chunk(2))}
        for part, value in parts.items():
            theirs = translate(part, modules)
            if theirs is None:
                raise ValueError(f"'{name}' has no counterpart")
            if end == "bias":
                converted[f"{theirs}/bias"] = value
            elif value.dim() == 1:
                converted[f"{theirs}/{'scale' if f'{module}.bias' in state else 'weight'}"] = value
            elif module == "labels" or module.startswith("style."):
                converted[f"{theirs}/embedding"] = value
            else:
                converted[f"{theirs}/kernel"] = value.t() if value.dim() == 2 else value.permute(2, 3, 1, 0)
    return converted
