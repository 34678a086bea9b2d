"""Whether two recipes would train the same thing: their components with all defaults written out."""

import dataclasses
from pathlib import PurePath
from typing import Any

from genflow.config import slots
from genflow.config.graph import ComponentGraph
from genflow.config.locations import is_local
from genflow.config.slots import Argument, Node, Reference, Section


def first_difference(found: ComponentGraph, expected: ComponentGraph) -> str | None:
    """Where two recipes differ in what they train, or in the data that they train it on; None if nowhere.

    Shared components count where they are used. How long and how fast something is trained does not count, and of files
    and folders only the names do, for they may lie elsewhere on another machine.
    """
    return _difference(_trained(found), _trained(expected), "")


def _trained(graph: ComponentGraph) -> dict[str, Any]:
    data = graph.recipe.arguments["train_dataloader"]
    dataset = None if data is None else data.arguments["dataset"]
    return {"model": _resolved(graph, graph.model), "train_dataloader": {"dataset": _resolved(graph, dataset)}}


def _resolved(graph: ComponentGraph, value: Any) -> Any:
    """Checked data as plain values, every argument with its value or default."""
    if isinstance(value, Reference):
        if value.name in graph.prerequisites:
            return _trained(graph.prerequisites[value.name].graph)
        value = graph.components[value.name]
    resolved = value
    if isinstance(value, Node):
        resolved = {"type": value.cls.__name__, **_arguments(graph, value, slots.signature_of(value.cls))}
    elif isinstance(value, Section):
        resolved = _arguments(graph, value, slots.section_signature(value.cls))
    elif dataclasses.is_dataclass(value):  # a default
        resolved = {entry.name: _resolved(graph, getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    elif isinstance(value, dict):
        resolved = {key: _resolved(graph, entry) for key, entry in value.items()}
    elif isinstance(value, (list, tuple)):
        resolved = [_resolved(graph, entry) for entry in value]
    return resolved


def _arguments(graph: ComponentGraph, owner: Node | Section, signature: dict[str, Argument]) -> dict[str, Any]:
    resolved = {}
    for name, argument in signature.items():
        value = owner.arguments.get(name, argument.default)
        if isinstance(value, str) and is_local(argument.annotation):
            value = _Name(PurePath(value).name)
        resolved[name] = _resolved(graph, value)
    return resolved


class _Name(str):
    """The name of a file or folder; one that is not given could be any."""


def _difference(found: Any, expected: Any, path: str) -> str | None:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            difference = _difference(found.get(key), expected.get(key), f"{path}.{key}".lstrip("."))
            if difference:
                return difference
        return None
    if found == expected or (None in (found, expected) and _Name in (type(found), type(expected))):
        return None
    return f"{path} is {found!r} there and {expected!r} here"
