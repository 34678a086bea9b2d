"""What of a machine is nobody else's business: where its files lie."""

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

#: An absolute path within a text; ``s3://bucket/pictures`` is an address, and ``and/or`` no path.
_PATH = re.compile(
    r"file://\S+"
    r"|(?<![\w/.$~-])~?/(?!/)[^\s,;'\"<>|()\[\]{}]+"
    r"|(?<![\w/])[A-Za-z]:[\\/](?!/)[^\s,;'\"<>|()\[\]{}]*"
    r"|\\\\[^\s,;'\"<>|()\[\]{}]+"
)


def without_paths(value: Any, place: str = "") -> tuple[Any, dict[str, str]]:
    """Plain data whose absolute paths are cut down to their last names.

    Files and folders count by their last name where recipes are compared (:mod:`genflow.config.comparison`), so the
    result means the same data.

    Args:
        value: dictionaries, lists and values; texts are looked through, keys among them.
        place: of the value, dotted.

    Returns:
        a copy, and the new text by place, for each value that has changed.
    """
    if isinstance(value, dict):
        changed: dict[str, str] = {}
        copy = {}
        for key, entry in value.items():
            name = _cut(key) if isinstance(key, str) else key
            copy[name], found = without_paths(entry, f"{place}.{name}" if place else str(name))
            changed |= found
        return copy, changed
    if isinstance(value, list):
        pairs = [without_paths(entry, f"{place}.{index}") for index, entry in enumerate(value)]
        return [entry for entry, _ in pairs], {name: text for _, found in pairs for name, text in found.items()}
    if not isinstance(value, str):
        return value, {}
    cut = _cut(value)
    return cut, {} if cut == value else {place: cut}


def _cut(text: str) -> str:
    if text.startswith("~/") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return _last(text)  # with spaces in it, perhaps
    return _PATH.sub(lambda match: _last(match[0]), text)


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].rstrip(":") or "."
