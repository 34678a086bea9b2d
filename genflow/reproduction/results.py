"""Tables and pictures of a reproduction in a folder where others' files may lie."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from genflow.errors import UserError
from genflow.weights import write_text


class ResultFiles:
    """Files that are replaced only if they are as :meth:`record` knew them, so that a reproduction may be repeated.

    Args:
        folder: where they go; it need not be there.
        names: theirs.
        overwrite: replace whatever has these names.

    Raises:
        UserError: one of them is there and is not ours, or was changed since.
    """

    def __init__(self, folder: Path, names: Iterable[str], overwrite: bool = False):
        self._folder = folder
        self._names = list(names)
        self._file = folder / ".results.json"
        known = self._known()
        for name in self._names:
            path = folder / name
            if not overwrite and path.exists() and known.get(name) != _digest(path):
                raise UserError(
                    f"{path}: is there already and was written or changed by others; --overwrite replaces it"
                )

    def record(self) -> None:
        """Note what has been written."""
        digests = {name: _digest(self._folder / name) for name in self._names}
        write_text(self._file, json.dumps({**self._known(), **digests}, indent=2) + "\n")

    def _known(self) -> dict[str, str]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # then nothing is ours
            known = {}
        return known if isinstance(known, dict) else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
