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

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, Event

from genflow.config.upgrade import upgrade
from genflow.errors import UserError, nearest, shown

_ENVIRONMENT = re.compile(r"\{\{\s*\$(\w+)\s*:\s*([^{}\s]*?)\s*\}\}")
_HELD = "__environment_"
_PREREQUISITE_KEYS = ("recipe", "run", "name")
_MOST_VALUES, _MOST_LEVELS = 100_000, 64


class _Constructor(SafeConstructor):
    """Scalars of YAML 1.2's core schema; dates and ``=``, which ruamel knows beyond it, are text."""


for _name in ("timestamp", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_name}", _Constructor.construct_yaml_str)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 text into plain dictionaries with text as keys, lists and scalars, none of them shared.

    Raises:
        UserError: a syntax error, a duplicate key or a tag, with ``source`` and the line.
    """
    try:
        level = 0
        for event in _yaml().parse(text):
            level += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            problem = _find_problem(event, level)
            if problem:
                raise UserError(f"{source}:{event.start_mark.line + 1}: not a valid recipe: {problem}")
        return _unshared(_yaml().load(text), source)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: not a valid recipe: {' '.join(str(problem).split())}") from None
    except UserError:
        raise
    except ValueError as error:  # a number that Python refuses
        raise UserError(f"{source}: not a valid recipe: {error}") from None


def _find_problem(event: Event, level: int) -> str | None:
    """What is valid YAML but no recipe."""
    if getattr(event, "version", None):
        return "this is YAML 1.2"
    if level > _MOST_LEVELS:
        return "too deeply nested"
    if getattr(event, "ctag", None):
        tag = str(event.ctag).replace("tag:yaml.org,2002:", "!!")
        return f"found the tag '{tag}', expected plain values; nothing in a recipe is executed"
    return None


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def _unshared(value: Any, source: str) -> Any:
    """A copy in which every alias is a value of its own, so that no override changes two places.

    Aliases inside themselves, or multiplied by each other, end at a limit.
    """
    left = _MOST_VALUES

    def copied(entry: Any, level: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or level > _MOST_LEVELS:
            raise UserError(f"{source}: not a valid recipe: too large or too deeply nested")
        if isinstance(entry, list):
            return [copied(item, level + 1) for item in entry]
        if not isinstance(entry, dict):
            return entry
        for key in entry:
            if not isinstance(key, str):
                raise UserError(f"{source}: key {key!r} is {_kind_of(key)}, expected text")
        return {key: copied(item, level + 1) for key, item in entry.items()}

    return copied(value, 0)


def dump_yaml(value: Mapping) -> str:
    """YAML text of plain objects, keys in their own order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 110
    stream = io.StringIO()
    yaml.dump(_plain(value), stream)
    return stream.getvalue()


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Iterable[str] | None = None) -> dict[str, Any]:
    """Read a recipe with all that it inherits and needs.

    Args:
        path: YAML file.
        overrides: ``{"a.b": value}``, or texts ``"a.b=value"`` with a YAML value, as ``--cfg-options`` gives
            them. ``prerequisites.NAME.recipe.KEY`` reaches into the recipe of a prerequisite.

    Returns:
        The resolved recipe. Every prerequisite holds its own resolved recipe, so that the result,
        written to a file, stands alone.

    Raises:
        UserError: one line with the file, the place, what was found and what was expected.
    """
    return _load(Path(path), _parse_overrides(overrides or {}), ())


def _load(path: Path, overrides: dict[str, Any], parents: tuple[Path, ...]) -> dict:
    path = Path(os.path.normpath(path))
    if path in parents:
        chain = " -> ".join(str(parent) for parent in (*parents, path))
        raise UserError(f"{path}: prerequisites form a cycle: {chain}")
    recipe = _read_inherited(path, ())
    nested: dict[str, dict[str, Any]] = {}
    for key, value in overrides.items():
        match = re.fullmatch(r"prerequisites\.([^.]+)\.recipe\.(.+)", key)
        if match:
            nested.setdefault(match[1], {})[match[2]] = value
        else:
            if key.startswith("prerequisites."):
                _name_prerequisite_files(recipe)
            _override(recipe, key, value, path)
    prerequisites = recipe.get("prerequisites", {})
    if not isinstance(prerequisites, dict):
        found = _kind_of(prerequisites)
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
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, str):
            entries[name] = {"recipe": entry}


def _load_prerequisite(name: str, entry: Any, path: Path, overrides: dict[str, Any], parents: tuple[Path, ...]) -> dict:
    where = f"{path}: prerequisites.{name}"
    entry = {"recipe": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "recipe" not in entry:
        raise UserError(f"{where}: found {_kind_of(entry)}, expected a recipe file, or 'recipe' and 'run'")
    for key in entry:
        if key not in _PREREQUISITE_KEYS:
            raise UserError(f"{where}.{key}: unknown key{nearest(key, _PREREQUISITE_KEYS)}")
        if key != "recipe" and not isinstance(entry[key], str):
            raise UserError(f"{where}.{key}: found {_kind_of(entry[key])}, expected text")
    recipe = entry["recipe"]
    if isinstance(recipe, dict):  # the recipe of a run: resolved already
        if "name" not in entry and "run" not in entry:
            raise UserError(f"{where}: 'name' is missing, the name of its run folder")
        for key, value in overrides.items():
            _override(recipe, key, value, path)
        upgrade(recipe)
        return entry
    if not isinstance(recipe, str):
        raise UserError(f"{where}.recipe: found {_kind_of(recipe)}, expected a recipe file")
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
        raise UserError(f"{path}: _base_: found {_kind_of(bases)}, expected a file or a list of files")
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
        raise UserError(f"{path}: found {_kind_of(recipe)}, expected a mapping of sections")
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
    for name, entry in entries.items() if isinstance(entries, dict) else ():
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


def _parse_overrides(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            example = "train_cfg.max_iters=100"
            raise UserError(f"--cfg-options: found '{text}', expected key=value, e.g. {example}")
        parsed[key] = parse_yaml(value, f"--cfg-options {key}")
    return parsed


def _override(recipe: dict, key: str, value: Any, path: Path) -> None:
    """Set ``a.b.0.c`` in place; missing dictionaries on the way are made, list entries must exist."""
    where = f"{path}: --cfg-options {key}"
    node: Any = recipe
    parts = key.split(".")
    for depth, part in enumerate(parts):
        index: str | int = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                place = ".".join(parts[: depth + 1])
                raise UserError(f"{where}: '{place}' is not in a list of {len(node)}")
            index = int(part)
        elif not isinstance(node, dict):
            raise UserError(f"{where}: '{'.'.join(parts[:depth])}' is {_kind_of(node)}, not a section")
        if depth == len(parts) - 1:
            node[index] = value
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            node = node[index]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _kind_of(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), f"{type(value).__name__} {shown(value)}")
