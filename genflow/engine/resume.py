"""What a resumed run trains: its own recipe, with what is given now laid over it, every difference said."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genflow.config.comparison import first_difference
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import dump_yaml, load_recipe, parse_yaml
from genflow.errors import UserError, shown
from genflow.runs.folder import RunFolder
from genflow.weights import write_text

#: Entries, and parts of names, without which a run does not go on as if it had not been interrupted.
_EXACT = ("seed", "train_dataloader.dataset", "train_dataloader.batch_size")
_EXACT_WORDS = ("noise",)
_MISSING = object()

Differences = list[tuple[tuple[str, ...], Any, Any]]


def given_file(folder: RunFolder) -> Path:
    """Where a run keeps the recipe file that it was started with, as it was, without what the command line set."""
    return folder.path / "recipe_as_given.yaml"


def write_given(folder: RunFolder, recipe: Mapping[str, Any]) -> None:
    """Keep the recipe file of a start, so that a later resume sees what was changed in it since."""
    write_text(given_file(folder), dump_yaml(recipe))


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run that a checkpoint belongs to; None if it lies elsewhere."""
    run = RunFolder(checkpoint.parent.parent)
    return run if run.recipe_file.is_file() and checkpoint.parent.name == "checkpoints" else None


def kept_prerequisites(graph: ComponentGraph, checkpoint: Path | None, allow_change: bool) -> dict[str, Path]:
    """Weights of prerequisites that a run keeps and goes on with, whatever has become of their own folders since.

    Args:
        graph: the recipe with which it goes on.
        checkpoint: from which; None for a start.
        allow_change: whether a prerequisite may be another one now; it is then that of its own folder.

    Returns:
        The files by the names of the prerequisites.

    Raises:
        UserError: the recipe of a prerequisite changed without ``allow_change``.
    """
    run = None if checkpoint is None else run_of(checkpoint)
    if run is None or not graph.prerequisites:
        return {}
    before = ComponentGraph.load(run.recipe_file).prerequisites
    kept = {}
    for name, prerequisite in graph.prerequisites.items():
        file = run.prerequisite_file(name)
        if name not in before or not file.is_file():
            continue
        difference = first_difference(before[name].graph, prerequisite.graph)
        if difference and not allow_change:
            remedy = "--allow-change takes it from its own folder, or trains it"
            raise UserError(f"{run}: cannot go on exactly: prerequisites.{name} changed: {difference}; {remedy}")
        if not difference:
            kept[name] = file
    return kept


def resumed_recipe(
    folder: RunFolder,
    given: Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str],
    seed: int | None,
    allow_change: bool,
) -> tuple[dict[str, Any], list[str]]:
    """The recipe with which a run goes on.

    Args:
        folder: the run's.
        given: the resolved recipe file as it is now, without overrides.
        overrides: of the command line.
        seed: of the command line; None for the run's.
        allow_change: whether entries may change without which the run is another one.

    Returns:
        The resolved recipe, and a line for each entry that differs from the run's own.

    Raises:
        UserError: such an entry changed without ``allow_change``; or an override does not fit.
    """
    own = load_recipe(folder.recipe_file)
    before = given_file(folder)
    # Runs of before this file was kept: what the recipe file says counts, as it did then.
    started = parse_yaml(before.read_text(encoding="utf-8"), str(before)) if before.is_file() else own
    recipe = load_recipe(folder.recipe_file)
    for path, _, value in _differences(started, given):
        _set(recipe, path, value)
    layered = load_recipe(folder.recipe_file, overrides, recipe)
    if seed is not None:
        layered["seed"] = seed
    lines = []
    for path, old, new in _differences(own, layered):
        line = f"{'.'.join(path)}: {_text(old)} in the run, {_text(new)} now"
        if _is_exact(path) and not allow_change:
            remedy = "give what the run has, or --allow-change, or another --work-dir"
            raise UserError(f"{folder}: cannot go on exactly: {line}; {remedy}")
        lines.append(line)
    return layered, lines


def _differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> Differences:
    """Paths of entries that differ, with both values; lists are one entry."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: Differences = []
        for key in [*old, *(key for key in new if key not in old)]:
            found += _differences(old.get(key, _MISSING), new.get(key, _MISSING), (*path, key))
        return found
    if isinstance(old, str) and isinstance(new, str) and os.path.isabs(old):
        new_path = os.path.abspath(new)  # a run's recipe holds paths like this
        return [] if new_path == old else [(path, old, new)]
    return [] if old == new and type(old) is type(new) else [(path, old, new)]


def _set(recipe: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for key in parents:
        recipe = recipe.setdefault(key, {})
    if value is _MISSING:
        recipe.pop(last, None)
    else:
        recipe[last] = value


def _is_exact(path: tuple[str, ...]) -> bool:
    name = ".".join(path)
    if name.startswith(("published", "evaluation", "default_hooks", "prerequisites")):
        return False
    return any(name == exact or name.startswith(f"{exact}.") for exact in _EXACT) or any(
        word in part for part in path for word in _EXACT_WORDS
    )


def _text(value: Any) -> str:
    return "nothing" if value is _MISSING else shown(value)
