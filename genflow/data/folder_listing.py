"""Which pictures lie in a folder, nested ones and those at an address included, and what is left out."""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from mmengine import fileio

from genflow.errors import UserError, reason

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


def is_address(path: str | Path) -> bool:
    """Whether a path is an address (``s3://bucket/pictures``) rather than a place in this machine's file system."""
    return "://" in str(path)


def place_of(root: str, path: str) -> str:
    """The path or address of what lies at the relative ``path`` under ``root``."""
    if not is_address(root):
        return os.path.join(root, path)
    web = root.startswith(("http://", "https://"))
    return f"{root.rstrip('/')}/{quote(path, errors='surrogateescape') if web else path}"


class Listing:
    """The pictures under a folder: files that end in .jpeg, .jpg, .png, .webp or .bmp, in capitals or not.

    Hidden files and folders are left out, and so is what is no regular file. Links count as what they name; a folder to
    which several lead is read once under each folder of the top level, so that circles end.

    Args:
        root: the folder, or its address, which mmengine's backend must be able to list.

    Raises:
        UserError: one line that names the folder that cannot be read.
    """

    def __init__(self, root: str):
        self.root = root
        #: Relative paths with ``/`` between their parts, in no particular order.
        self.pictures: list[str] = []
        #: Names of the folders at the top, sorted.
        self.folders: list[str] = []
        #: {what: (how many, the first of them)} of all that is not read.
        self.left_out: dict[str, tuple[int, str]] = {}
        if is_address(root):
            self._list_address()
            return
        self.folders = self._take("", set())
        for folder in self.folders:
            self._walk(folder)

    def __str__(self) -> str:
        """What is left out, as an appendix to a line."""
        kinds = [f"{count} {what} ({first!r})" for what, (count, first) in self.left_out.items()]
        return f"; left out: {', '.join(kinds)}" if kinds else ""

    def leave_out(self, what: str, paths: Iterable[str]) -> None:
        """Count files or folders that are not read."""
        for path in paths:
            count, first = self.left_out.get(what, (0, path))
            self.left_out[what] = (count + 1, first)

    def _walk(self, top: str) -> None:
        seen = {self._identity(""), self._identity(top)}
        waiting = [top]
        while waiting:
            waiting += reversed(self._take(waiting.pop(), seen))

    def _take(self, folder: str, seen: set[tuple[int, int]]) -> list[str]:
        """Sort a folder's files; returns the folders in it that are to be read, sorted, and adds them to ``seen``."""
        found: tuple[list[str], list[str], list[str]] = ([], [], [])
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in entries:
                    found[_sort_of(entry)].append(os.path.join(folder, entry.name))
        except OSError as error:
            raise self._unreadable(folder, error) from None
        folders, files, rest = (sorted(paths) for paths in found)
        self.leave_out("links to nothing, pipes or devices", rest)
        for path in files:
            self._take_file(path)
        self.leave_out("hidden folders", filter(_is_hidden, folders))
        inside = [path for path in folders if not _is_hidden(path)]
        if folder:
            new = []
            for path in inside:
                identity = self._identity(path)
                if identity in seen:
                    self.leave_out("links to folders that are read already", [path])
                else:
                    new.append(path)
                seen.add(identity)
            return new
        return inside

    def _take_file(self, path: str) -> None:
        ending = os.path.splitext(path)[1].lower()
        if _is_hidden(path):
            self.leave_out("hidden files", [path])
        elif ending in _SUFFIXES:
            self.pictures.append(path)
        else:
            self.leave_out(f"files ending in {ending}" if ending else "files without an ending", [path])

    def _identity(self, folder: str) -> tuple[int, int]:
        try:
            found = os.stat(os.path.join(self.root, folder))
        except OSError as error:
            raise self._unreadable(folder, error) from None
        return found.st_dev, found.st_ino

    def _unreadable(self, folder: str, error: OSError) -> UserError:
        inside = f": {os.path.join(self.root, folder)!r}" if folder else ""
        return UserError(f"data_root {self.root!r}{inside} is not a readable folder: {error.strerror}")

    def _list_address(self) -> None:
        try:
            backend = fileio.get_file_backend(self.root)
            if not hasattr(backend, "list_dir_or_file"):
                raise NotImplementedError
            paths = sorted(backend.list_dir_or_file(self.root.rstrip("/"), list_dir=False, recursive=True))
        except NotImplementedError:
            hint = "name the pictures in a file: 'labels: labels.json'"
            raise UserError(f"data_root {self.root!r} cannot be listed; {hint}") from None
        except KeyError as error:
            known = ", ".join(sorted(f"{prefix}://" for prefix in fileio.backends.prefix_to_backends if prefix))
            raise UserError(f"data_root {self.root!r}: no backend for {error}, expected one of {known}") from None
        except Exception as error:  # backends fail in many ways
            raise UserError(f"data_root {self.root!r} cannot be listed: {reason(error)}") from None
        hidden = [path for path in paths if any(map(_is_hidden, path.split("/")[:-1]))]
        self.leave_out("files in hidden folders", hidden)
        for path in sorted(set(paths) - set(hidden)):
            self._take_file(path)
        self.folders = sorted({path.split("/")[0] for path in self.pictures if "/" in path})


def _sort_of(entry: os.DirEntry) -> int:
    """0 for a folder, 1 for a regular file, 2 for what is neither, or cannot be told, such as a link to itself."""
    try:
        return 0 if entry.is_dir() else 1 if entry.is_file() else 2
    except OSError:
        return 2


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".")
