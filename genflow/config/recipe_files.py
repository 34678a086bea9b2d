"""Where GenFlow's own recipes are, and how a command's argument names one."""

from pathlib import Path

from genflow.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
#: Folder of GenFlow's recipes: an installed package holds a copy of what a checkout has beside the package (setup.py).
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "recipes"


def recipe_file(recipe: str) -> str:
    """The file that a command's argument means: a path, or the bare name of one of GenFlow's own recipes.

    A bare name has neither a folder nor a suffix, and nothing of that name lies in the working folder:
    ``biflow_digits`` is GenFlow's, ``./biflow_digits`` and ``biflow_digits.yaml`` are paths.

    Raises:
        UserError: GenFlow has no recipe of that name.
    """
    path = Path(recipe)
    if path.name != recipe or path.suffix or path.exists():
        return recipe
    file = RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        names = [path.stem for path in RECIPES.glob("*.yaml")]
        raise UserError(f"'{recipe}': GenFlow has no recipe of this name{nearest(recipe, names)}")
    return str(file)
