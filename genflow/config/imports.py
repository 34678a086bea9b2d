"""The modules that recipes name in ``custom_imports``: importing one runs its code, so somebody must have consented."""

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from genflow.config.overrides import parse_overrides
from genflow.config.upgrade import MOVED_MODULES
from genflow.config.yaml_text import parse_yaml
from genflow.errors import UserError, reason, shown

#: True for any module, False for none, or names of modules, each with those inside it.
AllowImports = bool | Iterable[str]

_CONSENT = (
    "importing runs their code: --allow-imports consents to all, --allow-imports NAME ... to some "
    "(in Python allow_imports=), naming them in the custom_imports of a recipe that you train to those"
)


class Imports:
    """What may be imported for a recipe, and where it is looked for.

    Modules of GenFlow and those that are imported already are always fine: nothing happens then.

    Args:
        allowed: which others.
        folders: searched after Python's path.
    """

    def __init__(self, allowed: AllowImports = False, folders: Iterable[str | Path] = ()):
        self.allowed = allowed if isinstance(allowed, bool) else tuple(allowed)
        self.folders = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))

    @classmethod
    def consented(
        cls, allowed: AllowImports, recipe: str | Path, overrides: Mapping[str, Any] | Iterable[str]
    ) -> "Imports":
        """For a look at a recipe, or at a run: what is allowed, and what the user's overrides name.

        The recipe's folder comes last, since it may be a stranger's.
        """
        allowed = allowed if isinstance(allowed, bool) else list(allowed)
        if not isinstance(allowed, bool) or not allowed:
            allowed = [*(allowed or []), *_named_in_overrides(overrides)]
        return cls(allowed, [os.curdir, Path(recipe).parent])

    @classmethod
    def own(cls, path: str | Path) -> "Imports":
        """For training the user's own recipe."""
        return cls(True, [Path(path).parent])

    @classmethod
    def resumed(
        cls, path: str | Path, given: Mapping[str, Any], overrides: Mapping[str, Any] | Iterable[str]
    ) -> "Imports":
        """For training that goes on in a run folder: what the user's own recipe, read to ``given``, names now."""
        return cls([*named_modules(given), *_named_in_overrides(overrides)], [Path(path).parent])

    def take(self, recipe: Mapping[str, Any], source: str) -> bool:
        """Import the modules that a resolved recipe and its prerequisites' name; print where each came from.

        Returns:
            whether there were any that had not been imported.

        Raises:
            UserError: nobody consented to one, or it cannot be imported.
        """
        new = self._take(recipe.get("custom_imports", []), source)
        for name, nested in _prerequisites(recipe):
            new = self.take(nested, f"{source}: prerequisites.{name}.recipe") or new
        return new

    def _take(self, modules: Any, source: str) -> bool:
        if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
            raise UserError(f"{source}: custom_imports: found {shown(modules)}, expected a list of module names")
        for module in modules:
            if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module):
                raise UserError(f"{source}: custom_imports: found {shown(module)}, expected the name of a module")
        names: list[str] = [MOVED_MODULES.get(str(module), str(module)) for module in modules]
        new = [name for name in names if not _is_ours(name)]
        refused = [name for name in new if not self._allows(name)]
        if refused:
            raise UserError(f"{source}: custom_imports: wants to import {', '.join(refused)}; {_CONSENT}")
        for name in names:
            self._import(name, source, said=name in new)
        return bool(new)

    def _allows(self, module: str) -> bool:
        if isinstance(self.allowed, bool):
            return self.allowed
        return any(module == name or module.startswith(f"{name}.") for name in self.allowed)

    def _import(self, module: str, source: str, said: bool) -> None:
        if said:
            # For good: what it imports later lies there too, and loader processes find it by the same path.
            sys.path += [folder for folder in self.folders if folder not in sys.path]
            importlib.invalidate_caches()
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            places = ", ".join(["PYTHONPATH", *self.folders])
            raise UserError(
                f"{source}: custom_imports: cannot import '{module}' from {places}: {reason(error)}"
            ) from error
        if said and is_main_process():
            print(f"{source}: imported {module} from {getattr(found, '__file__', None) or 'a folder'}", flush=True)


def named_modules(recipe: Mapping[str, Any]) -> list[str]:
    """The modules that a resolved recipe names, those of its prerequisites' recipes among them."""
    modules = recipe.get("custom_imports")
    names = [module for module in modules if isinstance(module, str)] if isinstance(modules, list) else []
    for _, nested in _prerequisites(recipe):
        names += named_modules(nested)
    return [MOVED_MODULES.get(name, name) for name in names]


def _prerequisites(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The resolved recipes of prerequisites, by name; what is none is the checks' business."""
    entries = recipe.get("prerequisites")
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("recipe"), Mapping):
            yield name, entry["recipe"]


def _named_in_overrides(overrides: Mapping[str, Any] | Iterable[str]) -> list[str]:
    """The modules that the command line names in the place of a recipe's."""
    names: list[str] = []
    for key, value in parse_overrides(overrides).items():
        if key.split(".")[-1] == "custom_imports":
            names += named_modules({"custom_imports": parse_yaml(value, key) if isinstance(value, str) else value})
    return names


def _is_ours(module: str) -> bool:
    """Whether importing it runs no code that has not been run or is not GenFlow's."""
    return module in sys.modules or f"{module}.".startswith("genflow.")
