"""Checked components are constructed, now or once the engine has what they need, within limits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from genflow.config import slots
from genflow.config.slots import Node
from genflow.errors import UserError, reason

Built = TypeVar("Built", bound=nn.Module)

#: Modules inside one component, lest a number in a recipe keep the machine busy for hours; the largest published
#: ones have a thousand.
_MOST_MODULES = 20_000


@contextmanager
def few_modules() -> Iterator[None]:
    """Ends a construction within which more modules are made than any network needs.

    Raises:
        ValueError: too many, in the constructor that makes them.
    """
    count = 0

    def add(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > _MOST_MODULES:
            raise ValueError(f"more than {_MOST_MODULES} modules; make it less deep")

    hook = register_module_module_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def construct(node: Node, arguments: dict[str, Any], source: str) -> Any:
    """The component of a node, or a :class:`Deferred` one where the engine supplies arguments of its kind.

    Raises:
        UserError: the component refuses its arguments; the line names ``source`` and the node's path.
    """
    if getattr(slots.KINDS[node.kind], "supplied", ()):
        return Deferred(node, arguments, source)
    with few_modules():
        return _called(node, source, **arguments)


class Deferred:
    """A component whose first arguments the engine supplies (an optimizer, a scheduler)."""

    def __init__(self, node: Node, arguments: dict[str, Any], source: str):
        self.node = node
        self.arguments = arguments
        self.source = source

    def default(self, name: str) -> Any:
        """The component's own value of an argument; None without one."""
        argument = slots.signature_of(self.node.cls).get(name)
        return None if argument is None else argument.default

    def fill(self, name: str, value: Any) -> None:
        """Give an argument a value if the component has it and the recipe does not set it."""
        if name in slots.signature_of(self.node.cls):
            self.arguments.setdefault(name, value)

    def __call__(self, *supplied: Any) -> Any:
        """Construct with the supplied arguments in front.

        Raises:
            UserError: the component refuses its arguments.
        """
        return _called(self.node, self.source, *supplied, **self.arguments)


def _called(node: Node, source: str, /, *supplied: Any, **arguments: Any) -> Any:
    try:
        return node.cls(*supplied, **arguments)
    except Exception as error:  # whatever a component raises when it refuses its arguments
        raise UserError(f"{source}: {node.path}: {reason(error)}") from error


def built_on_meta(build: Callable[[], Built]) -> Built:
    """What ``build`` makes, without memory for weights; with random ones where constructors read numbers off tensors.

    Raises:
        UserError: as ``build``.
    """
    try:
        with torch.device("meta"):
            return build()
    except UserError as error:
        if "meta" not in str(error.__cause__):
            raise
    with torch.random.fork_rng(devices=[]):
        return build()
