"""What a class may be given: the arguments of its constructor, or the keys of a dataclass, with their annotations."""

import dataclasses
import inspect
import typing
from typing import Any, NamedTuple

from torch import nn


class Argument(NamedTuple):
    """A constructor argument: its annotation, whether a recipe must give it, and its default (None without)."""

    annotation: Any
    required: bool
    default: Any = None


def signature_of(cls: type) -> dict[str, Argument]:
    """Constructor arguments by name, following ``**kwargs`` to base classes.

    An argument of a base class counts as optional, since the class itself may pass it on.
    """
    arguments: dict[str, Argument] = {}
    inherited = False
    for owner in cls.__mro__:
        if owner in (object, nn.Module):
            break
        if "__init__" not in vars(owner):
            continue
        try:
            hints = typing.get_type_hints(owner.__init__, include_extras=True)
        except (NameError, TypeError, AttributeError):  # annotations of foreign code that cannot be resolved
            hints = {}
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            no_default = parameter.default is parameter.empty
            default = None if no_default else parameter.default
            annotation = hints.get(parameter.name, Any)
            arguments.setdefault(parameter.name, Argument(annotation, no_default and not inherited, default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
        inherited = True
    return arguments


def section_signature(cls: type) -> dict[str, Argument]:
    """The keys of a dataclass, as :func:`signature_of` gives the arguments of a constructor."""
    hints = typing.get_type_hints(cls, include_extras=True)
    signature = {}
    for entry in dataclasses.fields(cls):
        made = entry.default_factory is not dataclasses.MISSING
        default = entry.default_factory() if made else entry.default
        required = default is dataclasses.MISSING
        signature[entry.name] = Argument(hints[entry.name], required, None if required else default)
    return signature
