"""Names and shapes of JiT's released weights in terms of our JiT (docs/model_zoo.md)."""

from collections.abc import Mapping

from torch import Tensor

from genflow.conversion.names import translate

#: Ours for theirs, modules; braces hold numbers that both share.
_MODULES = {
    "x_embedder.proj1": "patch_embedding.0",
    "x_embedder.proj2": "patch_embedding.1",
    "t_embedder.mlp.{}": "time_embedding.{}",
    "y_embedder.embedding_table": "labels",
    "blocks.{}.norm1": "layers.{}.attention_norm",
    "blocks.{}.attn.qkv": "layers.{}.attention.qkv",
    "blocks.{}.attn.q_norm": "layers.{}.attention.query_norm",
    "blocks.{}.attn.k_norm": "layers.{}.attention.key_norm",
    "blocks.{}.attn.proj": "layers.{}.attention.out",
    "blocks.{}.norm2": "layers.{}.feedforward_norm",
    "blocks.{}.mlp.w12": "layers.{}.feedforward.gate_up",
    "blocks.{}.mlp.w3": "layers.{}.feedforward.down",
    "blocks.{}.adaLN_modulation.1": "layers.{}.modulation",
    "final_layer.adaLN_modulation.1": "modulation",
    "final_layer.norm_final": "norm",
    "final_layer.linear": "output",
}
#: The same for tables, whose first axis is a batch of one in theirs.
_TABLES = {"pos_embed": "positions", "in_context_posemb": "context_positions"}


def from_torch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published network's weights under our names; views of them.

    Raises:
        ValueError: a name that the published network does not have.
    """
    return {_translated(name, _TABLES, _MODULES): _table(name, value) for name, value in state.items()}


def to_torch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_torch`; also of weights on the meta device.

    Raises:
        ValueError: a name that has no counterpart in the published network.
    """
    tables, modules = ({ours: theirs for theirs, ours in names.items()} for names in (_TABLES, _MODULES))
    return {
        _translated(name, tables, modules): value.unsqueeze(0) if name in tables else value
        for name, value in state.items()
    }


def _table(name: str, value: Tensor) -> Tensor:
    return value.squeeze(0) if name in _TABLES else value


def _translated(name: str, tables: Mapping[str, str], modules: Mapping[str, str]) -> str:
    if name in tables:
        return tables[name]
    module, _, end = name.rpartition(".")
    translated = translate(module, modules) if end in ("weight", "bias") else None
    if translated is None:
        raise ValueError(f"'{name}' has no counterpart")
    return f"{translated}.{end}"
