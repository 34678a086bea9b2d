"""Files of parameters that flax.serialization wrote, read without JAX (docs/model_zoo.md, Drifting)."""

import math
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError, missing_extra, reason

_TYPES = {
    b"float16": torch.float16,
    b"bfloat16": torch.bfloat16,
    b"float32": torch.float32,
    b"float64": torch.float64,
}
#: Marks the mapping that stands for a large array.
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _SCALAR = 1, 3


def read_flax(path: Path) -> dict[str, Tensor]:
    """Read floating-point arrays by their paths in the tree, joined by ``/``.

    Raises:
        UserError: the package msgpack is not installed, or the file is missing, damaged, or holds anything else.
    """
    try:
        import msgpack
    except ImportError as error:
        raise missing_extra("msgpack", "convert") from error

    def array(code: int, data: bytes) -> Tensor:
        if code not in (_ARRAY, _SCALAR):
            raise ValueError(f"an extension of type {code}")
        # Raw, because names and contents are text or bytes depending on the version that wrote them.
        shape, name, content = msgpack.unpackb(data, raw=True)
        if name not in _TYPES:
            raise ValueError(f"an array of type {name.decode()}, expected floating-point numbers")
        if math.prod(shape) * _TYPES[name].itemsize != len(content):
            raise ValueError(f"an array of {len(content)} bytes, which is not {name.decode()} of shape {tuple(shape)}")
        return torch.frombuffer(bytearray(content), dtype=_TYPES[name]).reshape(shape)

    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            arrays = msgpack.unpackb(content, ext_hook=array, object_pairs_hook=_flattened)
        if not isinstance(arrays, dict):
            raise ValueError("not a mapping")
        for name, value in arrays.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"'{name}' is not an array")
    except Exception as error:  # a damaged file makes msgpack fail anywhere
        raise UserError(f"{path}: not a complete file of Flax parameters: {reason(error)}") from None
    return arrays


def _flattened(entries: list[tuple[str, Any]]) -> Any:
    """One mapping of the file, in which those inside are flat already; a large array is put together."""
    if _CHUNKED in dict(entries):
        # Lists are mappings of text "0", "1", ..., not in this order.
        shape, chunks = (
            [mapping[str(index)] for index in range(len(mapping))]
            for mapping in (dict(entries)[key] for key in ("shape", "chunks"))
        )
        return torch.cat(chunks).reshape(shape)
    flat: dict[str, Any] = {}
    for key, value in entries:
        inner = {f"{key}/{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
        for name, entry in inner.items():
            if name in flat:
                raise ValueError(f"'{name}' is there twice")
            flat[name] = entry
    return flat
