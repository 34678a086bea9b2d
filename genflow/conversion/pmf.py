"""Names and shapes of pMF's and iMF's released weights in terms of PixelTransformer (docs/model_zoo.md)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

#: Ours for theirs; braces hold what both share.
_NAMES = {
    "x_embedder.proj1.{}": "patch_embedding.0.{}",
    "x_embedder.proj2.{}": "patch_embedding.1.{}",
    "x_embedder.proj.{}": "patch_embedding.{}",
    "h_embedder.mlp.{}": "embeddings.duration.{}",
    "omega_embedder.mlp.{}": "embeddings.guidance.{}",
    "cfg_t_start_embedder.mlp.{}": "embeddings.interval_start.{}",
    "cfg_t_end_embedder.mlp.{}": "embeddings.interval_end.{}",
    "y_embedder.embedding_table.weight": "embeddings.labels.weight",
    "time_tokens": "tokens.duration",
    "class_tokens": "tokens.labels",
    "omega_tokens": "tokens.guidance",
    "t_min_tokens": "tokens.interval_start",
    "t_max_tokens": "tokens.interval_end",
    "pos_embed": "positions",
    "shared_blocks.{}": "trunk.{}",
    "u_heads.{}": "main.layers.{}",
    "v_heads.{}": "auxiliary.layers.{}",
    "u_final_layer.norm.{}": "main.norm.{}",
    "v_final_layer.norm.{}": "auxiliary.norm.{}",
    "u_final_layer.linear.{}": "main.output.{}",
    "v_final_layer.linear.{}": "auxiliary.output.{}",
}
#: The same for the ends of names in layers.
_LAYER_NAMES = {
    "norm1.weight": "attention_norm.weight",
    "norm2.weight": "feedforward_norm.weight",
    "attn.out_proj.weight": "attention.out.weight",
    "attn.q_norm.weight": "attention.query_norm.weight",
    "attn.k_norm.weight": "attention.key_norm.weight",
    "mlp.w2.weight": "feedforward.down.weight",
    "attn_scale": "attention_gate",
    "mlp_scale": "feedforward_gate",
}
#: Ours, and theirs that are stacked in it.
_STACKED = {
    "attention.qkv.weight": ("attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"),
    "feedforward.gate_up.weight": ("mlp.w1.weight", "mlp.w3.weight"),
}
#: Rotary angles as complex numbers, which are computed again.
ROTATION = "rope_freqs"
#: The official networks wrap linear maps and tables, and so do those of FD-Loss (arXiv 2604.28190), under other names.
_WRAPPER = re.compile(r"(?<!_final_layer)\.(_flax_linear|_flax_embedding|linear|embedding)(?=\.(weight|bias)$)")


def from_torch(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The official PyTorch network's weights under our names.

    Args:
        state: by official names, with or without the prefix ``net.`` and the names of wrapped layers.
        channels: of the images.

    Raises:
        ValueError: a name that is in no part of the official network.
        KeyError: only a part of what we stack is there.
    """
    plain = {plain_name(name): value for name, value in state.items()}
    plain.pop(ROTATION, None)
    converted = {_translate(name, _NAMES, _LAYER_NAMES): value for name, value in plain.items()}
    for group, parts in _STACKED.items():
        for first in [name for name in converted if name.endswith(f".{parts[0]}")]:
            layer = first.removesuffix(parts[0])
            converted[layer + group] = torch.cat([converted.pop(layer + part) for part in parts])
    for name, value in converted.items():
        if ".output." in name:
            side = round((len(value) / channels) ** 0.5)
            by_channel = value.unflatten(0, (side, side, channels)).movedim(2, 0)
            converted[name] = by_channel.flatten(0, 2).contiguous()
    return converted


def to_torch(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The inverse of :func:`from_torch`, by official names without wrappers; also of weights on the meta device.

    Raises:
        ValueError: a name that has no counterpart in the official network.
    """
    converted = {}
    for name, value in state.items():
        pieces = {name: value}
        for group, parts in _STACKED.items():
            if name.endswith(f".{group}"):
                layer = name.removesuffix(group)
                pieces = {layer + part: piece for part, piece in zip(parts, value.chunk(len(parts)), strict=True)}
        if ".output." in name:
            side = round((len(value) / channels) ** 0.5)
            by_position = value.unflatten(0, (channels, side, side)).movedim(0, 2)
            pieces = {name: by_position.flatten(0, 2).contiguous()}
        for piece_name, piece in pieces.items():
            converted[_translate(piece_name, _inverse(_NAMES), _inverse(_LAYER_NAMES))] = piece
    return converted


def from_jax(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official JAX parameters, flattened by ``/``, under the official PyTorch names.

    Raises:
        ValueError: a path that is not below ``net``.
    """
    converted = {}
    for path, value in arrays.items():
        parts = path.removeprefix("params/").split("/")
        if parts[0] != "net":
            raise ValueError(f"'{path}' is not a parameter of the official network, which all begin with 'net/'")
        name = ".".join(re.sub(r"^(shared_blocks|u_heads|v_heads|layers)_(\d+)$", r"\1.\2", part) for part in parts[1:])
        name = name.replace("mlp.layers.", "mlp.")
        if parts[-1] == "embedding":
            converted[f"{name.removesuffix('embedding')}weight"] = value.squeeze(0)
        elif parts[-1] == "kernel":
            converted[f"{name.removesuffix('kernel')}weight"] = _kernel(value)
        else:
            converted[name] = value
    return converted


def _kernel(value: Tensor) -> Tensor:
    """A linear map or convolution with the output first, as in torch; gains are called kernels, too."""
    if value.dim() == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    return value.t().contiguous() if value.dim() == 2 else value


def plain_name(name: str) -> str:
    """An official name, or one of FD-Loss, without wrappers."""
    return _WRAPPER.sub("", name.removeprefix("net."))


def _translate(name: str, names: Mapping[str, str], layer_names: Mapping[str, str]) -> str:
    for old, new in names.items():
        match = re.fullmatch(re.escape(old).replace(r"\{\}", "(.+)"), name)
        if match:
            translated = new.format(*match.groups())
            break
    else:
        raise ValueError(f"'{name}' has no counterpart")
    for old, new in layer_names.items():
        if translated.endswith(f".{old}"):
            return translated.removesuffix(old) + new
    return translated


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}
