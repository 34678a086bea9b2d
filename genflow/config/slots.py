"""Check values of a recipe against constructor signatures, and prepare what is to be built.

The annotation of a constructor argument is the single statement of what a recipe may put there: a contract
class (one with a ``kind``) makes it a slot for components of that kind, a dataclass a section of named
keys, and plain types check scalars, lists and dictionaries.
"""

import collections.abc
import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from genflow.config.arguments import Argument, section_signature, signature_of
from genflow.config.foreign import with_ranges
from genflow.errors import UserError, nearest, shown
from genflow.ranges import Limit
from genflow.registry import KINDS, KindRegistry

_SCALARS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "a value",
}


_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclass
class Node:
    """A component to be built: its place in the recipe, kind, class and checked arguments."""

    path: str
    kind: str
    cls: type[Any]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """A ``$name`` in a slot of a kind, or of a family within it: a contract that derives from the kind's."""

    path: str
    name: str
    kind: str | None
    family: type | None = None


@dataclass
class Section:
    """A dataclass to be built from named keys."""

    path: str
    cls: type
    arguments: dict[str, Any]


class Mismatch(UserError):
    """A value that does not fit; ``path`` is its place in the recipe."""

    def __init__(self, path: str, message: str):
        self.path = path
        super().__init__(f"{path}: {message}" if path else message)


def check(value: Any, annotation: Any, path: str) -> Any:
    """Check ``value`` and return what builds it: plain data with Nodes, References and Sections inside.

    ``object`` stands for data that is looked at elsewhere.

    Raises:
        Mismatch: the value, or something inside it, is not what the annotation allows.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    checked = value
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        checked = _check_untyped(value, path)
    elif origin in (typing.Union, types.UnionType):
        checked = _check_union(value, arguments, path)
    elif origin is Annotated:
        checked = _check_limited(value, annotation, path)
    elif origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise _unexpected(value, annotation, path, nearest(value, arguments))
    elif origin in _LISTS:
        checked = _check_list(value, origin, arguments, path)
    elif origin in _MAPPINGS:
        checked = _check_mapping(value, annotation, path)
    elif hasattr(annotation, "kind"):
        checked = _of_family(_check_slot(value, annotation.kind, path), annotation)
    elif dataclasses.is_dataclass(annotation):
        checked = check_section(value, annotation, path)
    elif annotation is not object:
        checked = _check_scalar(value, annotation, path)
    return checked


def _check_limited(value: Any, annotation: Any, path: str) -> Any:
    inner, *limits = typing.get_args(annotation)
    checked = check(value, inner, path)
    if not all(checked in limit for limit in limits if isinstance(limit, Limit)):
        raise _unexpected(value, annotation, path)
    return checked


def _check_mapping(value: Any, annotation: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(value, annotation, path)
    keys, entries = typing.get_args(annotation)
    for key in value:
        check(key, keys, f"{path}.{key}")
    return {key: check(entry, entries, f"{path}.{key}") for key, entry in value.items()}


def _check_scalar(value: Any, annotation: Any, path: str) -> Any:
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:
            return float(value)
        raise _unexpected(value, annotation, path)
    if annotation in (list, dict) and type(value) is annotation:
        return _check_untyped(value, path)
    if annotation in (int, bool, str) and type(value) is annotation:
        return value
    if annotation in (None, type(None)) and value is None:
        return None
    raise _unexpected(value, annotation, path)


def check_finite(value: Any, path: str) -> None:
    """See that every number of a recipe is one, also where nothing is known about a place.

    Raises:
        Mismatch: there is an infinite one, or ``nan``.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise _unexpected(value, float, path)
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in pairs:
        check_finite(entry, f"{path}.{key}".lstrip("."))


def _check_untyped(value: Any, path: str) -> Any:
    """Foreign constructors may lack annotations; a component is still recognised by its shape."""
    if isinstance(value, str) and value.startswith("$"):
        return Reference(path, value[1:], None)
    if isinstance(value, list):
        return [_check_untyped(entry, f"{path}.{index}") for index, entry in enumerate(value)]
    if not isinstance(value, dict):
        return value
    for kind in KINDS.values():
        if isinstance(value.get("type"), str) and value["type"] in kind.module_dict:
            return _check_slot(value, kind.name, path)
    return {key: _check_untyped(entry, f"{path}.{key}") for key, entry in value.items()}


def _check_union(value: Any, choices: tuple, path: str) -> Any:
    errors = []
    for choice in choices:
        try:
            return check(value, choice, path)
        except Mismatch as error:
            errors.append((choice, error))
    for choice, error in errors:  # what has entries of its own explains itself better than "expected A or B"
        structured = hasattr(choice, "kind") or dataclasses.is_dataclass(choice)
        if structured and (isinstance(value, dict) or (isinstance(value, str) and value.startswith("$"))):
            raise error
        bare = typing.get_args(choice)[0] if typing.get_origin(choice) is Annotated else choice
        origins = _LISTS if isinstance(value, list) else _MAPPINGS if isinstance(value, dict) else ()
        if typing.get_origin(bare) in origins and error.path != path:
            raise error
    raise _unexpected(value, typing.Union[choices], path)  # noqa: UP007


def _check_list(value: Any, origin: Any, arguments: tuple, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise Mismatch(path, f"found {shown(value)}, expected a list")
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise Mismatch(path, f"found {len(value)} entries, expected {len(arguments)}")
        entries = arguments
    else:
        entries = (arguments[0] if arguments else Any,) * len(value)
    pairs = enumerate(zip(value, entries, strict=True))
    checked = [check(item, entry, f"{path}.{index}") for index, (item, entry) in pairs]
    return tuple(checked) if origin is tuple else checked


def check_component(value: Any, path: str) -> Node:
    """Check a component of any kind.

    Raises:
        Mismatch: it is none, or its arguments are wrong.
    """
    if not isinstance(value, dict) or "type" not in value:
        raise Mismatch(path, f"found {shown(value)}, expected a component: a mapping with 'type'")
    cls = find_component(value["type"], list(KINDS.values()), f"{path}.type")
    kind = next(name for name, kind in KINDS.items() if kind.components().get(value["type"]) is cls)
    return _check_slot(value, kind, path)


def _check_slot(value: Any, kind_name: str, path: str) -> Node | Reference:
    if isinstance(value, str) and value.startswith("$"):
        return Reference(path, value[1:], kind_name)
    if kind_name not in KINDS:  # of what a run makes, not a recipe
        raise Mismatch(path, f"found {shown(value)}, expected $name, a prerequisite that trains {a_kind(kind_name)}")
    kind = KINDS[kind_name]
    if not isinstance(value, dict):
        raise Mismatch(path, f"found {shown(value)}, expected {a_kind(kind_name)}: a mapping with 'type', or $name")
    if "type" not in value:
        raise Mismatch(path, f"'type' is missing, expected the name of {a_kind(kind_name)}")
    cls = find_component(value["type"], [kind], f"{path}.type")
    given = {key: entry for key, entry in value.items() if key != "type"}
    signature = {name: entry for name, entry in signature_of(cls).items() if name not in kind.supplied}
    if kind.external is not None:
        signature = with_ranges(cls, signature)
    return Node(path, kind_name, cls, _check_arguments(given, signature, path, cls.__name__))


def _of_family(checked: Node | Reference, contract: type) -> Node | Reference:
    """See that a component is of the family that a slot wants; what a name refers to is seen later."""
    if not hasattr(contract.__mro__[1], "kind"):
        return checked
    if isinstance(checked, Reference):
        return dataclasses.replace(checked, family=contract)
    check_family(checked.cls, contract, f"{checked.path}.type")
    return checked


def check_family(cls: type, family: type, path: str) -> None:
    """Check that a component's class is of a family.

    Raises:
        Mismatch: it is another sort of the kind.
    """
    if not issubclass(cls, family):
        wanted = f"expected a {family.__name__}, another sort of {family.kind}"
        raise Mismatch(path, f"found '{cls.__name__}', {wanted}")


def find_component(name: Any, kinds: Sequence[KindRegistry], path: str) -> type:
    """The class that a recipe calls ``name``.

    Raises:
        Mismatch: none of ``kinds`` has it.
    """
    for kind in kinds if isinstance(name, str) else ():
        if name in kind.components():
            return kind.components()[name]
    components = {key for kind in kinds for key in kind.components()}
    wanted = a_kind(kinds[0].name) if len(kinds) == 1 else "a component"
    for other in KINDS.values():
        if isinstance(name, str) and name in other.module_dict:
            raise Mismatch(path, f"found '{name}', which is {a_kind(other.name)}, expected {wanted}")
    own = sorted(key for kind in kinds for key in kind.module_dict)
    known = f" (known: {', '.join(own)})" if own and len(kinds) == 1 else ""
    raise Mismatch(
        path,
        f"found {shown(name)}, expected the name of {wanted}{nearest(name, components)}{known}; "
        "a component of your own needs its module in custom_imports",
    )


def a_kind(name: str) -> str:
    """The name of a kind with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _check_arguments(given: dict, signature: dict[str, Argument], path: str, owner: str) -> dict[str, Any]:
    paths = {name: f"{path}.{name}".lstrip(".") for name in (*given, *signature)}
    for name in given:
        if name not in signature:
            hint = nearest(name, signature) or "; from a _base_? '_delete_: true' leaves it out"
            raise Mismatch(paths[name], f"{owner} has no argument '{name}'{hint}")
    for name, argument in signature.items():
        if argument.required and name not in given:
            raise Mismatch(paths[name], f"missing, {owner} needs it ({_describe(argument.annotation)})")
    return {name: check(value, signature[name].annotation, paths[name]) for name, value in given.items()}


def check_section(value: Any, cls: type, path: str) -> Section:
    """Check a mapping against a dataclass; ``path`` is empty for a whole recipe."""
    if not isinstance(value, dict):
        raise Mismatch(path, f"found {shown(value)}, expected a section")
    signature = section_signature(cls)
    for name in value:
        if name not in signature:
            raise Mismatch(f"{path}.{name}".lstrip("."), f"unknown key{nearest(name, signature)}")
    arguments = _check_arguments(value, signature, path, path or "a recipe")
    return Section(path, cls, arguments)


def build(value: Any, make: Callable[[Node], Any], resolve: Callable[[Reference], Any]) -> Any:
    """Build checked data: Nodes by ``make``, References by ``resolve``, Sections as their dataclass.

    Raises:
        Mismatch: a section refuses its values.
    """
    if isinstance(value, Node):
        return make(value)
    if isinstance(value, Reference):
        return resolve(value)
    if isinstance(value, Section):
        arguments = {key: build(entry, make, resolve) for key, entry in value.arguments.items()}
        try:
            return value.cls(**arguments)
        except ValueError as error:
            raise Mismatch(value.path, str(error)) from None
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


def _describe(annotation: Any, value: Any = None) -> str:
    """What an annotation allows, in words; of its limits those that ``value`` breaks, if it breaks any."""
    origin, choices = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (list, dict) or origin in _LISTS or origin in _MAPPINGS:
        text = "a mapping" if annotation is dict or origin in _MAPPINGS else "a list"
    elif hasattr(annotation, "kind"):
        text = a_kind(annotation.kind)
    elif dataclasses.is_dataclass(annotation):
        text = "a section"
    elif origin is Annotated:
        limits = [limit for limit in choices[1:] if isinstance(limit, Limit)]
        broken = [limit for limit in limits if limit.judges(value) and value not in limit]
        named = broken or [limit for limit in limits if not limit.tacit]
        text = " ".join([_describe(choices[0], value), *map(str, named)])
    elif origin is Literal:
        text = "one of " + ", ".join(repr(choice) for choice in choices)
    elif origin in (typing.Union, types.UnionType):
        text = " or ".join(_describe(choice, value) for choice in choices if _is_recipe_type(choice))
    else:
        text = _SCALARS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return text


def _allows(annotation: Any, scalars: tuple[type, ...]) -> bool:
    """Whether it is one of some types of scalars, or a union with one."""
    if typing.get_origin(annotation) in (*_LISTS, *_MAPPINGS):
        return False
    return annotation in scalars or any(_allows(part, scalars) for part in typing.get_args(annotation))


def _unexpected(value: Any, annotation: Any, path: str, hint: str = "") -> Mismatch:
    if isinstance(value, str) and _allows(annotation, (int, float)):
        try:
            hint = "; a number in quotes is text" if math.isfinite(float(value)) else ""
        except ValueError:
            hint = ""
    elif isinstance(value, (int, float)) and _allows(annotation, (str,)):
        hint = "; what looks like a number or a truth value is text in quotes"
    elif isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
        hint = "; it must be finite"
    return Mismatch(path, f"found {shown(value)}, expected {_describe(annotation, value)}{hint}")
