"""Which recipe a released file belongs to, by the shapes in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from genflow.errors import UserError


@dataclass(frozen=True)
class ReleasedSizes:
    """What tells the released files of a project.

    Args:
        name: as people call it.
        patches: the name of the map of patches, whose last axis is a side of one.
        tokens: a name whose last axis is the width.
        layers: what the names of layers begin with, before their number.
        recipes: by side of a patch, width, and layers.
    """

    name: str
    patches: str
    tokens: str
    layers: tuple[str, ...]
    recipes: Mapping[tuple[int, int, int], str]

    def find(self, file: Path, state: Mapping[str, Tensor]) -> str:
        """The name of the recipe of a state by the published names.

        Raises:
            UserError: ``file`` holds something else, or another size.
        """
        names = (self.patches, self.tokens)
        for name in names:
            if name not in state:
                raise UserError(f"{file}: not the weights of {self.name}: '{name}' is missing")
        patch, width = (state[name].shape[-1:] for name in names)
        layers = {tuple(name.split(".")[:2]) for name in state if name.startswith(self.layers)}
        size = (*patch, *width, len(layers))
        if size not in self.recipes:
            what = "patch size, width and layers"
            raise UserError(f"{file}: {what} are {size}, which was not released; give its recipe with --recipe")
        return self.recipes[size]
