"""Files of tensors: written atomically, read without unpickling arbitrary objects, checked."""

import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genflow.errors import UserError

#: What a training checkpoint holds.
_FIELDS = {
    "step": int,
    "format": int,
    "seed": int,
    "model": dict,
    "optimizer": dict,
    "schedulers": list,
    "averages": dict,
}


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it to disk and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; tied ones are written under each of their names."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in state.items():
        own = value.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if storage in storages else own  # the format refuses shared memory
        storages.add(storage)
    write_atomically(path, lambda temporary: save_file(plain, temporary))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is missing, truncated or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file: {_line(error)}") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary: safetensors by its suffix, else what torch.save wrote, alone or as the entry ``model``
    or ``state_dict``.

    Raises:
        UserError: the file is missing, truncated, holds pickled objects or something else than tensors by name.
    """
    if path.suffix == ".safetensors":
        return read_weights(path)
    state = _unpickle(path, "weights file")
    for entry in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise UserError(f"{path}: not a state dictionary: expected tensors by name")
    return state


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load what was read from ``path``.

    Raises:
        UserError: keys or shapes differ; names the first one.
    """
    try:
        check_state(module.state_dict(), state)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    module.load_state_dict(state)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain Python values with torch.save."""
    write_atomically(path, lambda temporary: torch.save(dict(state), temporary))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote; never unpickles anything but tensors and plain values.

    Raises:
        UserError: it is missing, truncated, or holds pickled objects.
    """
    state = _unpickle(path, "checkpoint")
    for name, kind in _FIELDS.items():
        if not isinstance(state, dict) or not isinstance(state.get(name), kind):
            raise UserError(f"{path}: not a training checkpoint of GenFlow: it has no '{name}'")
    return state


def _unpickle(path: Path, what: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such {what}")
    try:
        with warnings.catch_warnings():  # about pickles of another sort, which are refused
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: a {what} may hold tensors and plain values only") from None
    except Exception as error:  # a damaged file makes the unpickler fail anywhere
        raise UserError(f"{path}: not a complete {what}: {_line(error)}") from None


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check that ``state`` has exactly the keys and shapes of ``own``.

    Raises:
        ValueError: names the first missing, unknown or misshapen entry.
    """
    for name in [*own, *state]:
        if name not in own or name not in state:
            raise ValueError(f"'{name}' is {'missing from the file' if name in own else 'not in the model'}")
        if own[name].shape != state[name].shape:
            found, expected = tuple(state[name].shape), tuple(own[name].shape)
            raise ValueError(f"'{name}' has shape {found}, expected {expected}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
