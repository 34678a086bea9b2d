"""Files of tensors: written atomically, read without unpickling arbitrary objects, checked."""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
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

#: Where the metadata of our safetensors files keep the digest of the tensors.
_DIGEST = "genflow.sha256"

#: What a disk does that is full, over its quota, read-only or broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def naming_disk(path: Path) -> Iterator[None]:
    """If ``path`` cannot be written because of its disk, say so in one line.

    Raises:
        OSError: names the file, the disk and what is free on it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save hides the one behind the other
        number = _disk_error(error)
        if number is None:
            raise
        disk = path.absolute()
        while not disk.is_mount():
            disk = disk.parent
        usage = shutil.disk_usage(disk)
        room = f"{usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free"
        raise OSError(f"{path}: cannot be written: {os.strerror(number)}; disk {disk}: {room}") from error


def _disk_error(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it to disk and rename it into place.

    Raises:
        OSError: as :func:`naming_disk`; the old file stays, and nothing else.
    """
    with naming_disk(path):
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


def target_of(path: Path) -> Path | None:
    """The file that :func:`write_atomically` was writing when it was killed and left ``path``; None: it did not."""
    match = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}\.partial", path.name)  # as tempfile makes names
    return None if match is None else path.with_name(match[1])


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, with their digest; tied ones are written under each of their names."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in state.items():
        own = value.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if storage in storages else own  # the format refuses shared memory
        storages.add(storage)
    # The library's own writer of files would leave one of another name behind when it is killed.
    write_atomically(path, lambda temporary: temporary.write_bytes(save(plain, {_DIGEST: _digest(plain)})))


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; one that holds a digest, as ours do, is compared with it.

    Raises:
        UserError: it is missing, truncated, damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(_DIGEST)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file: {_line(error)}") from None
    if digest not in (None, _digest(state)):
        raise UserError(f"{path}: damaged: its weights are not those of the digest that it was written with")
    return state


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
    if not _is_state(state):
        raise UserError(f"{path}: not a state dictionary: expected tensors by name")
    return state


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read all state dictionaries in a file, by their entries; the only one of a file that is one itself is ''.

    A checkpoint's arguments may be in it, as argparse has them, if they are plain values.

    Raises:
        UserError: as :func:`read_state`.
    """
    if path.suffix == ".safetensors":
        return {"": read_weights(path)}
    with torch.serialization.safe_globals([Namespace]):
        content = _unpickle(path, "weights file")
    if _is_state(content):
        return {"": content}
    entries = content.items() if isinstance(content, dict) else ()
    states = {name: value for name, value in entries if isinstance(name, str) and _is_state(value) and value}
    if not states:
        raise UserError(f"{path}: not a state dictionary: expected tensors by name")
    return states


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(entry, Tensor) for name, entry in value.items()
    )


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

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, torch.save does not tell why it fails
            torch.save(dict(state), file)

    write_atomically(path, write)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote; never unpickles anything but tensors and plain values.

    Raises:
        UserError: it is missing, truncated, damaged, or holds pickled objects.
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
            _check_sums(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: a {what} may hold tensors and plain values only") from None
    except Exception as error:  # a damaged file makes the unpickler fail anywhere
        raise UserError(f"{path}: not a complete {what}: {_line(error)}") from None


def check_file(path: Path) -> None:
    """Compare the checksums in a file that :func:`write_checkpoint` wrote, without loading it.

    Raises:
        UserError: the file is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("its end is missing")
        _check_sums(path)
    except Exception as error:  # whatever a damaged archive makes of its reader
        raise UserError(f"{path}: not a complete file: {_line(error)}") from None


def _check_sums(path: Path) -> None:
    """Compare the checksums in a file of torch.save, which torch.load does not; older formats have none.

    Raises:
        ValueError, or what else :mod:`zipfile` raises: damage.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # Whoever saves may leave all checksums out.
        damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
    for entry in entries:
        # Of a file that is flagged as a folder (DOS attributes), torch.load returns whatever was in memory.
        if entry.filename == damaged or (entry.external_attr & 0x10 and not entry.is_dir()):
            raise ValueError(f"'{entry.filename}' in it is damaged")


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
