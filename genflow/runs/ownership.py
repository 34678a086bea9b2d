"""Which files in a folder are a run's: others are never overwritten or removed."""

import hashlib
import re
from pathlib import Path

from genflow.errors import UserError
from genflow.weights import target_of

_STEP = "step_[0-9]{8,}"
#: What a training writes, but for metrics.json, which evaluations write too.
_WRITTEN = re.compile(
    r"recipe(_as_given)?\.yaml|scalars\.jsonl|generator(-[^/]+)?\.safetensors|prerequisites/[^/]+\.safetensors"
    rf"|samples/{_STEP}\.png|checkpoints/{_STEP}\.(pt|process_[0-9]+_of_[0-9]+)"
)
#: mmengine's folder for the console log of a start, and what a reproduction's training prints.
_LOGS = re.compile(r"[0-9]{8}_[0-9]{6}|console\.log")


def check_own(folder: Path, recipe: Path, scalars: Path) -> None:
    """See that nobody's files are in the way: ``folder`` is not there, or what is in it is a run's.

    Hidden files and the logs of a start do not count.

    Args:
        folder: the folder; it has neither checkpoints nor trained weights.
        recipe, scalars: where a run's would be.

    Raises:
        UserError: it holds something else; names it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; pass another --work-dir")
    if _is_signed(recipe) or _begins_as_scalars(scalars):
        return
    names = (entry.name for entry in folder.iterdir())
    others = sorted(name for name in names if not name.startswith(".") and not _LOGS.fullmatch(name))
    if others:
        raise UserError(f"{folder}: holds '{others[0]}' and is no run folder; pass another --work-dir")


def signed(text: str) -> str:
    """A recipe with a first line that says who wrote it, and a digest, since people go on from copies of it."""
    return f"{_signature(text.encode())}\n{text}"


def _signature(text: bytes) -> str:
    return f"# Written by GenFlow; sha256 of what follows: {hashlib.sha256(text).hexdigest()}"


def _is_signed(recipe: Path) -> bool:
    """Whether it is as :func:`signed` made it, to the last letter."""
    if not recipe.is_file():
        return False
    first, _, text = recipe.read_bytes().partition(b"\n")
    return first == _signature(text).encode()


def _begins_as_scalars(path: Path) -> bool:
    """Whether a file is scalars.jsonl of a run; older runs did not sign their recipes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(9) in (b"", b'{"step": ')


def remove_partial_files(folder: Path) -> None:
    """Remove the half-written files that a training left which was killed; no other training may run in ``folder``."""
    for file in (*folder.glob(".*.partial"), *folder.glob("*/.*.partial")):
        target = target_of(file)
        if target is not None and _WRITTEN.fullmatch(target.relative_to(folder).as_posix()):
            file.unlink()
