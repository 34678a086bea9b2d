"""Check values of a recipe against constructor signatures, and prepare what is to be built.

The annotation of a constructor argument is the single statement of what a recipe may put there: a contract
class (one with a ``kind``) makes it a slot for components of that kind, a dataclass a section of named
keys, and plain types check scalars, lists and dictionaries.
"""

import collections.abc
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from genflow.errors import UserError, nearest
from genflow.registry import KINDS, KindRegistry


@dataclass
class Node:
    """A component to be built: its place in the recipe, kind, class and checked arguments."""

    path: str
    kind: str
    cls: type
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """A ``$name`` in a slot of a kind."""

    path: str
    name: str
    kind: str | None


@dataclass
class Section:
    """A dataclass to be built from named keys."""

    path: str
    cls: type
    arguments: dict[str, Any]


class Mismatch(UserError):
    """A value that does not fit; ``path`` is its place in the recipe."""

    def __init__(self, path: str, message: str):
        super().__init__(f"{path}: {message}")


def signature_of(cls: type) -> dict[str, tuple[Any, bool]]:
    """Constructor arguments as ``{name: (annotation, required)}``, following ``**kwargs`` to base classes."""
    arguments: dict[str, tuple[Any, bool]] = {}
    for owner in cls.__mro__:
        if owner in (object, nn.Module):
            break
        if "__init__" not in vars(owner):
            continue
        try:
            hints = typing.get_type_hints(owner.__init__)
        except (NameError, TypeError):  # annotations of foreign code that cannot be resolved
            hints = {}
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            required = parameter.default is parameter.empty
            arguments.setdefault(parameter.name, (hints.get(parameter.name, Any), required))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return arguments


def check(value: Any, annotation: Any, path: str) -> Any:
    """Check ``value`` and return what builds it: plain data with Nodes, References and Sections inside.

    Raises:
        Mismatch: the value, or something inside it, is not what the annotation allows.
    """
    if annotation is Any or annotation is inspect.Parameter.empty or isinstance(annotation, typing.TypeVar):
        return _check_untyped(value, path)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _check_union(value, arguments, path)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        choices = ", ".join(repr(choice) for choice in arguments)
        raise Mismatch(path, f"found {value!r}, expected one of {choices}{nearest(value, arguments)}")
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable, tuple):
        return _check_list(value, origin, arguments, path)
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            raise _unexpected(value, annotation, path)
        return {key: check(entry, arguments[1], f"{path}.{key}") for key, entry in value.items()}
    if hasattr(annotation, "kind"):
        return _check_slot(value, annotation.kind, path)
    if dataclasses.is_dataclass(annotation):
        return check_section(value, annotation, path)
    return _check_scalar(value, annotation, path)


def _check_scalar(value: Any, annotation: Any, path: str) -> Any:
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if annotation in (int, bool, str, list, dict) and type(value) is annotation:
        return value
    if annotation in (None, type(None)) and value is None:
        return None
    raise _unexpected(value, annotation, path)


def _check_untyped(value: Any, path: str) -> Any:
    """Foreign constructors may lack annotations; a component is still recognised by its shape."""
    if isinstance(value, str) and value.startswith("$"):
        return Reference(path, value[1:], None)
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        for kind in KINDS.values():
            if value["type"] in kind.module_dict:
                return _check_slot(value, kind.name, path)
    return value


def _check_union(value: Any, choices: tuple, path: str) -> Any:
    errors = []
    for choice in choices:
        try:
            return check(value, choice, path)
        except Mismatch as error:
            errors.append((choice, error))
    for choice, error in errors:  # a component or a section explains itself better than "expected A or B"
        structured = hasattr(choice, "kind") or dataclasses.is_dataclass(choice)
        if structured and (isinstance(value, dict) or (isinstance(value, str) and value.startswith("$"))):
            raise error
    wanted = " or ".join(_describe(choice) for choice in choices if _is_recipe_type(choice))
    raise Mismatch(path, f"found {value!r}, expected {wanted}")


def _check_list(value: Any, origin: Any, arguments: tuple, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise Mismatch(path, f"found {value!r}, expected a list")
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise Mismatch(path, f"found {len(value)} entries, expected {len(arguments)}")
        return tuple(check(v, a, f"{path}.{i}") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    entry = arguments[0] if arguments else Any
    checked = [check(item, entry, f"{path}.{index}") for index, item in enumerate(value)]
    return tuple(checked) if origin is tuple else checked


def _check_slot(value: Any, kind_name: str, path: str) -> Node | Reference:
    kind = KINDS[kind_name]
    if isinstance(value, str) and value.startswith("$"):
        return Reference(path, value[1:], kind_name)
    if not isinstance(value, dict):
        raise Mismatch(path, f"found {value!r}, expected a {kind_name}: a mapping with 'type', or $name")
    if "type" not in value:
        raise Mismatch(path, f"'type' is missing, expected the name of a {kind_name}")
    cls = _find_component(value["type"], kind, f"{path}.type")
    skipped = ("type", *kind.supplied)
    given = {key: entry for key, entry in value.items() if key not in skipped}
    signature = {name: entry for name, entry in signature_of(cls).items() if name not in kind.supplied}
    return Node(path, kind_name, cls, _check_arguments(given, signature, path, cls.__name__))


def _find_component(name: Any, kind: KindRegistry, path: str) -> type:
    components = kind.components()
    if name in components:
        return components[name]
    for other in KINDS.values():
        if name in other.module_dict:
            raise Mismatch(path, f"found '{name}', which is a {other.name}, expected a {kind.name}")
    known = f" (known: {', '.join(sorted(kind.module_dict))})" if kind.module_dict else ""
    raise Mismatch(
        path,
        f"found {name!r}, expected the name of a {kind.name}{nearest(name, components)}{known}; "
        "a component of your own needs its module in custom_imports",
    )


def _check_arguments(given: dict, signature: dict[str, tuple[Any, bool]], path: str, owner: str) -> dict[str, Any]:
    for name in given:
        if name not in signature:
            raise Mismatch(f"{path}.{name}", f"{owner} has no argument '{name}'{nearest(name, signature)}")
    for name, (annotation, required) in signature.items():
        if required and name not in given:
            raise Mismatch(f"{path}.{name}", f"missing, {owner} needs it ({_describe(annotation)})")
    return {name: check(value, signature[name][0], f"{path}.{name}".lstrip(".")) for name, value in given.items()}


def check_section(value: Any, cls: type, path: str) -> Section:
    """Check a mapping against a dataclass; ``path`` is empty for a whole recipe."""
    if not isinstance(value, dict):
        raise Mismatch(path, f"found {value!r}, expected a section")
    hints = typing.get_type_hints(cls)
    signature = {
        entry.name: (
            hints[entry.name],
            entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING,
        )
        for entry in dataclasses.fields(cls)
    }
    for name in value:
        if name not in signature:
            raise Mismatch(f"{path}.{name}".lstrip("."), f"unknown key{nearest(name, signature)}")
    arguments = _check_arguments(value, signature, path, path or "a recipe")
    return Section(path, cls, arguments)


def build(value: Any, make: Callable[[Node], Any], resolve: Callable[[Reference], Any]) -> Any:
    """Build checked data: Nodes by ``make``, References by ``resolve``, Sections as their dataclass."""
    if isinstance(value, Node):
        return make(value)
    if isinstance(value, Reference):
        return resolve(value)
    if isinstance(value, Section):
        return value.cls(**{key: build(entry, make, resolve) for key, entry in value.arguments.items()})
    if isinstance(value, dict):
        return {key: build(entry, make, resolve) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(build(entry, make, resolve) for entry in value)
    return value


def walk(value: Any) -> collections.abc.Iterator[Node | Reference]:
    """The Nodes and References directly inside checked data, not those inside Nodes."""
    if isinstance(value, (Node, Reference)):
        yield value
    elif isinstance(value, Section):
        yield from walk(value.arguments)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from walk(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from walk(entry)


def _is_recipe_type(annotation: Any) -> bool:
    return not isinstance(annotation, type) or (
        annotation in (int, float, bool, str, list, dict, type(None))
        or hasattr(annotation, "kind")
        or dataclasses.is_dataclass(annotation)
        or typing.get_origin(annotation) is not None
    )


def _describe(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if annotation in (list, dict) or typing.get_origin(annotation) in (list, tuple, dict):
        return "a mapping" if annotation is dict or typing.get_origin(annotation) is dict else "a list"
    if hasattr(annotation, "kind"):
        return f"a {annotation.kind}"
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in typing.get_args(annotation) if _is_recipe_type(choice))
    return names.get(annotation, "a value" if annotation is Any else getattr(annotation, "__name__", str(annotation)))


def _unexpected(value: Any, annotation: Any, path: str) -> Mismatch:
    hint = ""
    if annotation in (int, float) and isinstance(value, str):
        try:
            hint = "; a number in quotes is text" if math.isfinite(float(value)) else ""
        except ValueError:
            hint = ""
    return Mismatch(path, f"found {value!r}, expected {_describe(annotation)}{hint}")
