"""Names and shapes of pMF's released weights in terms of PixelTransformer (pMF, spec 15)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

#: Ours for theirs; braces hold what both share.
_NAMES = {
    "x_embedder.proj1.{}": "patch_embedding.0.{}",
    "x_embedder.proj2.{}": "patch_embedding.1.{}",
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
    "u_final_layer.{}": "main.{}",
    "v_final_layer.{}": "auxiliary.{}",
}
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
_RECOMPUTED = ("rope_freqs",)


def from_torch(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The official PyTorch network's weights under our names.

    Args:
        state: by official names, with or without the prefix ``net.``.
        channels: of the images.

    Raises:
        ValueError: a name that the official network does not have, or one of a stacked group is missing.
    """
    plain = {_plain(name): value for name, value in state.items()}
    converted: dict[str, Tensor] = {}
    stacked: dict[str, dict[str, Tensor]] = {}
    for name, value in plain.items():
        if name in _RECOMPUTED:
            continue
        ours = _rename(name)
        group = next((group for group, parts in _STACKED.items() if _ends(ours, parts)), None)
        if group is None:
            converted[ours] = _by_channel(value, channels) if ".output." in ours else value
        else:
            part = next(part for part in _STACKED[group] if ours.endswith(f".{part}"))
            stacked.setdefault(ours.removesuffix(part) + group, {})[part] = value
    for ours, found in stacked.items():
        parts = next(parts for group, parts in _STACKED.items() if ours.endswith(group))
        missing = [part for part in parts if part not in found]
        if missing:
            layer = ours.rsplit(".", 3)[0]
            raise ValueError(f"'{missing[0]}' of layer '{layer}' is missing from the file")
        widths = {found[part].shape for part in parts}
        if len(widths) > 1:
            raise ValueError(f"{', '.join(parts)} have different shapes: {sorted(map(tuple, widths))}")
        converted[ours] = torch.cat([found[part] for part in parts])
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


def _plain(name: str) -> str:
    """An official name without its wrappers."""
    return name.removeprefix("net.").replace("._flax_linear.", ".").replace("._flax_embedding.", ".")


def _ends(name: str, parts: tuple[str, ...]) -> bool:
    return any(name.endswith(f".{part}") for part in parts)


def _rename(name: str) -> str:
    for theirs, ours in _NAMES.items():
        match = re.fullmatch(re.escape(theirs).replace(r"\{\}", "(.+)"), name)
        if match is None:
            continue
        rest = match.group(1) if match.groups() else ""
        if theirs in ("shared_blocks.{}", "u_heads.{}", "v_heads.{}"):
            index, _, leaf = rest.partition(".")
            known = leaf in _LAYER_NAMES or any(leaf in parts for parts in _STACKED.values())
            if not known:
                break
            rest = f"{index}.{_LAYER_NAMES.get(leaf, leaf)}"
        elif theirs.endswith("final_layer.{}"):
            rest = re.sub("^linear", "output", rest)
        return ours.replace("{}", rest)
    raise ValueError(f"'{name}' is not a parameter of the official network")


def _by_channel(value: Tensor, channels: int) -> Tensor:
    """Rows of an output map from the order (row, column, channel) to (channel, row, column)."""
    side = round((len(value) / channels) ** 0.5)
    return value.unflatten(0, (side, side, channels)).movedim(2, 0).flatten(0, 2).contiguous()
