"""A limit on what is built: a number in a recipe must not keep the machine busy for hours."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

#: Modules inside one component; the largest published ones have a thousand.
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
