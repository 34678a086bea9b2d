"""GenFlow: one-step image generation in PyTorch.

Names load when they are used, and built-in components when one is looked up (:mod:`genflow.registry`): ``--help`` waits
for neither.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genflow.condition import Condition
    from genflow.config.graph import ComponentGraph
    from genflow.config.recipe import load_recipe
    from genflow.draws import Draws
    from genflow.errors import UserError
    from genflow.generators.base import Generator
    from genflow.inference.write_images import save_grid, to_pil
    from genflow.runs.folder import Run, open_run

__version__ = "0.1.0"
__all__ = (
    "ComponentGraph",
    "Condition",
    "Draws",
    "Generator",
    "Run",
    "UserError",
    "load_recipe",
    "open_run",
    "save_grid",
    "to_pil",
)

_MODULES = {
    "ComponentGraph": "config.graph",
    "Condition": "condition",
    "Draws": "draws",
    "Generator": "generators.base",
    "Run": "runs.folder",
    "UserError": "errors",
    "load_recipe": "config.recipe",
    "open_run": "runs.folder",
    "save_grid": "inference.write_images",
    "to_pil": "inference.write_images",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"genflow.{_MODULES[name]}"), name)
    if not name.startswith("_") and find_spec(f"genflow.{name}") is not None:
        return import_module(f"genflow.{name}")
    raise AttributeError(f"module 'genflow' has no attribute '{name}'")
