"""Read a recipe: safe YAML 1.2, `_base_` inheritance, environment variables, overrides, prerequisites.

Nothing in a recipe is executed: tags are refused, and a recipe is plain dictionaries, lists and scalars.
What the keys mean, and whether they are right, is :mod:`genflow.graph`'s business.
"""

import copy
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from genflow.errors import UserError, nearest

_ENVIRONMENT = re.compile(r"\{\{\s*\$(\w+)\s*:\s*([^{}\s]*?)\s*\}\}")
_PREREQUISITE_KEYS = ("recipe", "run", "name")


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 text into plain Python objects.

    Raises:
        UserError: a syntax error, a duplicate key or a tag, with ``source`` and the line.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        return yaml.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: not a valid recipe: {' '.join(str(problem).split())}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source}: not a valid recipe: {' '.join(str(error).split())}") from None


def dump_yaml(value: Mapping) -> str:
    """YAML text of plain objects, keys in their own order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 110
    stream = io.StringIO()
    yaml.dump(_plain(value), stream)
    return stream.getvalue()


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Iterable[str] | None = None) -> Config:
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
    return Config(_load(Path(path), _parse_overrides(overrides or {}), ()), filename=str(path))


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
            _override(recipe, key, value, path)
    prerequisites = recipe.get("prerequisites", {})
    if not isinstance(prerequisites, dict):
        raise UserError(f"{path}: prerequisites: found {_kind_of(prerequisites)}, expected a mapping of name to recipe")
    for name in nested:
        if name not in prerequisites:
            raise UserError(f"{path}: prerequisites.{name}: no such prerequisite{nearest(name, prerequisites)}")
    for name, entry in prerequisites.items():
        prerequisites[name] = _load_prerequisite(
            name, entry, path, nested.get(name, {}), (*parents, path)
        )
    return recipe


def _load_prerequisite(name: str, entry: Any, path: Path, overrides: dict[str, Any], parents: tuple[Path, ...]) -> dict:
    where = f"{path}: prerequisites.{name}"
    entry = {"recipe": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "recipe" not in entry:
        raise UserError(f"{where}: found {_kind_of(entry)}, expected a recipe file, or 'recipe' and 'run'")
    for key in entry:
        if key not in _PREREQUISITE_KEYS:
            raise UserError(f"{where}.{key}: unknown key{nearest(key, _PREREQUISITE_KEYS)}")
    recipe = entry["recipe"]
    if isinstance(recipe, dict):  # the recipe of a run: resolved already
        for key, value in overrides.items():
            _override(recipe, key, value, path)
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
        inherited = _read_inherited(path.parent / base, (*children, path))
        for key in inherited.keys() & merged.keys():
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
    # Placeholders become words before parsing and values after it, so that no value can alter the structure.
    values: list[str] = []

    def hold(match: re.Match) -> str:
        values.append(os.environ.get(match[1], match[2]))
        return f"__environment_{len(values) - 1}__"

    recipe = parse_yaml(_ENVIRONMENT.sub(hold, text), str(path))
    if not isinstance(recipe, dict):
        raise UserError(f"{path}: found {_kind_of(recipe)}, expected a mapping of sections")
    recipe = _fill(recipe, values, str(path))
    _anchor_prerequisites(recipe, path)
    return recipe


def _fill(value: Any, values: list[str], source: str) -> Any:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{source}: key {key!r} is {_kind_of(key)}, expected text")
        return {key: _fill(entry, values, source) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry, values, source) for entry in value]
    if not isinstance(value, str) or "__environment_" not in value:
        return value
    whole = re.fullmatch(r"__environment_(\d+)__", value)
    if whole:
        parsed = parse_yaml(values[int(whole[1])], source)
        return values[int(whole[1])] if isinstance(parsed, (dict, list)) else parsed
    return re.sub(r"__environment_(\d+)__", lambda match: values[int(match[1])], value)


def _anchor_prerequisites(recipe: dict, path: Path) -> None:
    """Make recipe files of prerequisites relative to the file that names them."""
    entries = recipe.get("prerequisites")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, str):
            entries[name] = str(path.parent / entry)
        elif isinstance(entry, dict) and isinstance(entry.get("recipe"), str):
            entry["recipe"] = str(path.parent / entry["recipe"])


def _merge(base: Any, child: Any) -> Any:
    """Dictionaries merge key by key, everything else replaces; ``_delete_: true`` replaces a dictionary."""
    if not isinstance(base, dict) or not isinstance(child, dict) or child.get("_delete_") is True:
        child = copy.deepcopy(child)
        return _merge({}, {k: v for k, v in child.items() if k != "_delete_"}) if isinstance(child, dict) else child
    merged = dict(base)
    for key, value in child.items():
        merged[key] = _merge(base.get(key), value)
    return merged


def _parse_overrides(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--cfg-options: found '{text}', expected key=value, e.g. train_cfg.max_iters=100")
        parsed[key] = parse_yaml(value, f"--cfg-options {key}")
    return parsed


def _override(recipe: dict, key: str, value: Any, path: Path) -> None:
    """Set ``a.b.0.c`` in place; missing dictionaries on the way are made, list entries must exist."""
    node: Any = recipe
    parts = key.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(f"{path}: --cfg-options {key}: '{where}' is not in a list of {len(node)}")
            part = int(part)
        elif not isinstance(node, dict):
            raise UserError(f"{path}: --cfg-options {key}: '{'.'.join(parts[:depth])}' is {_kind_of(node)}, not a section")
        elif part not in node and not last:
            node[part] = {}
        if last:
            node[part] = value
        else:
            node = node[part]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _kind_of(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), f"{type(value).__name__} {value!r}")
