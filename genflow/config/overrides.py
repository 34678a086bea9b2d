"""Entries of a recipe set from the command line or from Python: ``a.b.0.c=value``."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from genflow.config.arguments import section_signature, signature_of
from genflow.config.sections import RecipeSections
from genflow.config.yaml_text import parse_yaml
from genflow.errors import UserError, kind_of
from genflow.registry import KINDS


class OverrideText(str):
    """A value as the command line has it; what it means depends on its place."""


def parse_overrides(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Overrides by key: values of a mapping, or the texts behind ``key=``.

    Raises:
        UserError: a text is not ``key=value``.
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            example = "train_cfg.max_iters=100"
            raise UserError(f"--cfg-options: found '{text}', expected key=value, e.g. {example}")
        parsed[key] = OverrideText(value)
    return parsed


def override(recipe: dict, key: str, value: Any, path: Path) -> None:
    """Set ``a.b.0.c`` in place; missing dictionaries on the way are made, list entries must exist.

    A text is read as YAML, but where the recipe wants text: there it is taken as it stands, or in quotes.

    Raises:
        UserError: the key leads nowhere, or the text is no YAML.
    """
    where = f"{path}: --cfg-options {key}"
    node: Any = recipe
    parts = key.split(".")
    if isinstance(value, OverrideText):
        value = _read(value, annotation_at(recipe, RecipeSections, parts), f"--cfg-options {key}")
    for depth, part in enumerate(parts):
        index: str | int = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                place = ".".join(parts[: depth + 1])
                raise UserError(f"{where}: '{place}' is not in a list of {len(node)}")
            index = int(part)
        elif not isinstance(node, dict):
            raise UserError(f"{where}: '{'.'.join(parts[:depth])}' is {kind_of(node)}, not a section")
        if depth == len(parts) - 1:
            node[index] = value
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            node = node[index]


def _read(text: str, annotation: Any, source: str) -> Any:
    scalars = set(_scalars(annotation))
    if str not in scalars or scalars & {int, float, bool, Any, object}:
        return parse_yaml(text, source)
    try:
        value = parse_yaml(text, source)
    except UserError:
        return str(text)
    quoted = text.strip()[:1] in ("'", '"') and isinstance(value, str)
    nothing = value is None and type(None) in scalars
    collection = isinstance(value, (dict, list)) and list in scalars
    return value if quoted or nothing or collection else str(text)


def _scalars(annotation: Any) -> Iterable[Any]:
    """The types that an annotation allows, all sorts of collections as ``list``."""
    origin, choices = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from _scalars(choices[0])
    elif origin in (typing.Union, types.UnionType):
        for choice in choices:
            yield from _scalars(choice)
    elif origin is Literal:
        yield from map(type, choices)
    elif origin is not None or dataclasses.is_dataclass(annotation) or hasattr(annotation, "kind"):
        yield list
    else:
        yield annotation


def annotation_at(value: Any, annotation: Any, parts: list[str]) -> Any:
    """What a place below ``value`` is annotated with; Any where nobody says, or no component is known there.

    Args:
        value: plain data of a recipe.
        annotation: of ``value``.
        parts: keys that lead from it to the place.
    """
    if not parts:
        return annotation
    origin, choices = typing.get_origin(annotation), typing.get_args(annotation)
    part, rest = parts[0], parts[1:]
    below: Any = Any
    if origin is Annotated:
        return annotation_at(value, choices[0], parts)
    if origin in (typing.Union, types.UnionType):
        found = (annotation_at(value, choice, parts) for choice in choices)
        return next((entry for entry in found if entry is not Any), Any)
    if dataclasses.is_dataclass(annotation):
        arguments = section_signature(annotation)
    elif isinstance(value, dict) and isinstance(value.get("type"), str):
        components = (kind.components().get(value["type"]) for kind in KINDS.values())
        component = next(filter(None, components), None)
        arguments = {} if component is None else signature_of(component)
    elif origin is dict and len(choices) == 2:
        arguments, below = {}, choices[1]
    else:
        arguments, below = {}, choices[0] if choices and part.isdecimal() else Any
    if part in arguments:
        below = arguments[part].annotation
    if isinstance(value, dict):
        inner = value.get(part)
    else:
        inner = value[int(part)] if isinstance(value, list) and part.isdecimal() and int(part) < len(value) else None
    return annotation_at(inner, below, rest)
