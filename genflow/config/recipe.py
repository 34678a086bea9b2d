"""Read a recipe: safe YAML 1.2, `_base_` inheritance, environment variables, overrides, prerequisites.

Nothing in a recipe is executed: tags are refused, and a recipe is plain dictionaries, lists and scalars.
What the keys mean, and whether they are right, is :mod:`genflow.config.graph`'s business.
"""

import copy
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genflow.config.overrides import override, parse_overrides
from genflow.config.upgrade import upgrade
from genflow.config.yaml_text import parse_yaml, safe_yaml
from genflow.errors import UserError, kind_of, nearest, shown

_ENVIRONMENT = re.compile(r"\{\{\s*\$(\w+)\s*:\s*([^{}\s]*?)\s*\}\}")
_HELD = "__environment_"
_PREREQUISITE_KEYS = ("recipe", "run", "name")
_MOST_BYTES = 2**22


def dump_yaml(value: Mapping) -> str:
    """YAML text of plain objects, keys in their own order."""
    yaml = safe_yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared by its default, None
    yaml.width = 110
    stream = io.StringIO()
    yaml.dump(_plain(value), stream)
    return stream.getvalue()


def load_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | Iterable[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read a recipe with all that it inherits and needs.

    Args:
        path: YAML file.
        overrides: ``{"a.b": value}``, or texts ``"a.b=value"`` with a YAML value, as ``--cfg-options`` gives
            them. ``prerequisites.NAME.recipe.KEY`` reaches into the recipe of a prerequisite.
        recipe: a resolved recipe in the place of what the file holds, which then is named in messages only.

    Returns:
        The resolved recipe. Every prerequisite holds its own resolved recipe, so that the result,
        written to a file, stands alone.

    Raises:
        UserError: one line with the file, the place, what was found and what was expected.
    """
    return _load(Path(path), parse_overrides(overrides or {}), (), recipe)


def _load(
    path: Path, overrides: dict[str, Any], parents: tuple[Path, ...], given: Mapping[str, Any] | None = None
) -> dict:
    path = Path(os.path.normpath(path))
    if path in parents:
        chain = " -> ".join(str(parent) for parent in (*parents, path))
        raise UserError(f"{path}: prerequisites form a cycle: {chain}")
    recipe = _read_inherited(path, ()) if given is None else _plain(given)
    nested: dict[str, dict[str, Any]] = {}
    for key, value in overrides.items():
        match = re.fullmatch(r"prerequisites\.([^.]+)\.recipe\.(.+)", key)
        if match:
            nested.setdefault(match[1], {})[match[2]] = value
        else:
            if key.startswith("prerequisites."):
                _name_prerequisite_files(recipe)
            override(recipe, key, value, path)
    prerequisites = recipe.get("prerequisites", {})
    if not isinstance(prerequisites, dict):
        found = kind_of(prerequisites)
        raise UserError(f"{path}: prerequisites: found {found}, expected a mapping of name to recipe")
    for name in nested:
        if name not in prerequisites:
            where = f"{path}: prerequisites.{name}"
            raise UserError(f"{where}: no such prerequisite{nearest(name, prerequisites)}")
    for name, entry in prerequisites.items():
        prerequisites[name] = _load_prerequisite(name, entry, path, nested.get(name, {}), (*parents, path))
    upgrade(recipe)
    return recipe


def _name_prerequisite_files(recipe: dict) -> None:
    """``teacher: FILE`` becomes ``teacher: {recipe: FILE}``, so that an override can add a key."""
    entries = recipe.get("prerequisites")
    if not isinstance(entries, dict):
        return
    for name, entry in entries.items():
        if isinstance(entry, str):
            entries[name] = {"recipe": entry}


def _load_prerequisite(name: str, entry: Any, path: Path, overrides: dict[str, Any], parents: tuple[Path, ...]) -> dict:
    where = f"{path}: prerequisites.{name}"
    entry = {"recipe": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "recipe" not in entry:
        raise UserError(f"{where}: found {kind_of(entry)}, expected a recipe file, or 'recipe' and 'run'")
    for key in entry:
        if key not in _PREREQUISITE_KEYS:
            raise UserError(f"{where}.{key}: unknown key{nearest(key, _PREREQUISITE_KEYS)}")
        if key != "recipe" and not isinstance(entry[key], str):
            raise UserError(f"{where}.{key}: found {kind_of(entry[key])}, expected text")
    recipe = entry["recipe"]
    if isinstance(recipe, dict):  # the recipe of a run: resolved already
        if "name" not in entry and "run" not in entry:
            raise UserError(f"{where}: 'name' is missing, the name of its run folder")
        for key, value in overrides.items():
            override(recipe, key, value, path)
        upgrade(recipe)
        return entry
    if not isinstance(recipe, str):
        raise UserError(f"{where}.recipe: found {kind_of(recipe)}, expected a recipe file")
    file = Path(recipe)
    if not file.is_file():
        raise UserError(f"{where}: recipe '{recipe}' does not exist{nearest(file.stem, _siblings(file))}")
    return {**entry, "name": entry.get("name", file.stem), "recipe": _load(file, overrides, parents)}


def _siblings(path: Path) -> list[str]:
    return [file.stem for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []


def _read_inherited(path: Path, children: tuple[Path, ...]) -> dict:
    """Read one file and, underneath, its `_base_` files."""
    path = Path(os.path.normpath(path))
    if path in children:
        chain = " -> ".join(str(child) for child in (*children, path))
        raise UserError(f"{children[0]}: _base_ forms a cycle: {chain}")
    recipe = _read_file(path)
    bases = recipe.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: _base_: found {kind_of(bases)}, expected a file or a list of files")
    merged: dict = {}
    for base in bases:
        file = path.parent / base
        if not file.is_file():
            raise UserError(f"{path}: _base_: '{base}' does not exist{nearest(file.stem, _siblings(file))}")
        inherited = _read_inherited(file, (*children, path))
        for key in sorted(inherited.keys() & merged.keys()):
            raise UserError(f"{path}: _base_: '{key}' is in more than one base; one place for each key")
        merged.update(inherited)
    return _merge(merged, recipe)


def _read_file(path: Path) -> dict:
    try:
        if path.exists() and not path.is_file():  # to open a pipe is to wait for its writer
            found = "a folder" if path.is_dir() else "a pipe or a device"
            raise UserError(f"{path}: not a readable recipe: found {found}")
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: not a valid recipe: larger than {_MOST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe{nearest(path.stem, _siblings(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable recipe: {error}") from None
    if _HELD in text:
        raise UserError(f"{path}: not a valid recipe: '{_HELD}' stands for placeholders")
    # Placeholders become words before parsing and values after it, so that no value can alter the structure.
    values: list[str] = []

    def hold(match: re.Match) -> str:
        values.append(os.environ.get(match[1], match[2]))
        return f"{_HELD}{len(values) - 1}__"

    recipe = parse_yaml(_ENVIRONMENT.sub(hold, text), str(path))
    if not isinstance(recipe, dict):
        raise UserError(f"{path}: found {kind_of(recipe)}, expected a mapping of sections")
    recipe = _fill(recipe, values, str(path))
    _anchor_prerequisites(recipe, path)
    return recipe


def _fill(value: Any, values: list[str], source: str) -> Any:
    if isinstance(value, dict):
        for key in value:
            if _HELD in key:
                raise UserError(f"{source}: found a placeholder in a key, expected one in a value")
        return {key: _fill(entry, values, source) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry, values, source) for entry in value]
    if not isinstance(value, str):
        return value
    if re.search(r"\{\{\s*\$", value):
        raise UserError(f"{source}: found {shown(value)}, expected a placeholder {{{{$NAME:default}}}}")
    whole = re.fullmatch(rf"{_HELD}(\d+)__", value)
    if whole:
        return _scalar(values[int(whole[1])], source)
    return re.sub(rf"{_HELD}(\d+)__", lambda match: values[int(match[1])], value)


def _scalar(text: str, source: str) -> Any:
    """What ``text`` from the environment means: a number, truth value or null, otherwise itself."""
    try:
        parsed = parse_yaml(text, source)
    except UserError:
        return text
    return text if isinstance(parsed, (dict, list, str)) else parsed


def _anchor_prerequisites(recipe: dict, path: Path) -> None:
    """Make recipe files of prerequisites relative to the file that names them."""
    entries = recipe.get("prerequisites")
    if not isinstance(entries, dict):
        return
    for name, entry in entries.items():
        if isinstance(entry, str):
            entries[name] = str(path.parent / entry)
        elif isinstance(entry, dict) and isinstance(entry.get("recipe"), str):
            entry["recipe"] = str(path.parent / entry["recipe"])


def _merge(base: Any, child: Any) -> Any:
    """Dictionaries merge key by key, everything else replaces.

    ``_delete_: true`` replaces a dictionary, and alone in one removes the key that holds it.
    """
    if not isinstance(child, dict):
        return copy.deepcopy(child)
    if not isinstance(base, dict) or child.get("_delete_") is True:
        base, child = {}, {key: value for key, value in child.items() if key != "_delete_"}
    merged = dict(base)
    for key, value in child.items():
        if value == {"_delete_": True}:
            merged.pop(key, None)
        else:
            merged[key] = _merge(base.get(key), value)
    return merged


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
