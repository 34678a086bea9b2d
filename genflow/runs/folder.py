"""Run folders: the resolved recipe, the generator's weights and the metrics, and loading them again."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.config.graph import ComponentGraph
from genflow.config.recipe import dump_yaml, load_recipe
from genflow.errors import UserError, nearest
from genflow.generators.base import Generator
from genflow.methods.base import Method
from genflow.weights import check_state, read_weights, write_atomically, write_text, write_weights

RECIPE_FILE = "recipe.yaml"
WEIGHTS_FILE = "generator.safetensors"
METRICS_FILE = "metrics.json"


def is_complete(run_dir: Path) -> bool:
    """Whether a run folder holds a finished artifact."""
    return (run_dir / WEIGHTS_FILE).is_file() and (run_dir / RECIPE_FILE).is_file()


def write_recipe(run_dir: Path, recipe: Mapping[str, Any]) -> None:
    """Write the resolved recipe, which stands alone: prerequisites are written out inside it."""
    write_text(run_dir / RECIPE_FILE, dump_yaml(recipe))


def write_metrics(run_dir: Path, update: Mapping[str, Any]) -> None:
    """Merge ``update`` into metrics.json.

    Raises:
        UserError: the file is there, but not what this function writes.
    """
    path = run_dir / METRICS_FILE
    try:
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; repair or remove it") from None
    write_text(path, json.dumps({**metrics, **update}, indent=2) + "\n")


def weights_file(run_dir: Path, average: str | None = None) -> Path:
    """The file of the exported weights, or of another average of the same run."""
    return run_dir / (WEIGHTS_FILE if average is None else f"generator-{average}.safetensors")


def write_artifact(run_dir: Path, graph: ComponentGraph, method: Method, average: str | None = None) -> None:
    """Write the weights of what the method trains (the generator's network, never the codec).

    Those that only training needs are left out.
    """
    state = method.artifact_module.state_dict()
    kept = graph.build_artifact().state_dict()
    write_weights(weights_file(run_dir, average), {name: state[name] for name in kept})


def prerequisite_file(run_dir: Path, name: str) -> Path:
    """Where a run keeps the weights of a prerequisite."""
    return run_dir / "prerequisites" / f"{name}.safetensors"


def keep_prerequisite(run_dir: Path, name: str, source: Path) -> None:
    """Put the weights of the finished run ``source`` into ``run_dir``, so that its folder stands alone.

    Both folders share one copy on disk where the file system can: files of weights are replaced, never changed.
    """

    def link(temporary: Path) -> None:
        temporary.unlink()
        try:
            os.link(weights_file(source), temporary)
        except OSError:  # another file system
            shutil.copyfile(weights_file(source), temporary)

    write_atomically(prerequisite_file(run_dir, name), link)


def read_artifact(run_dir: Path) -> dict[str, Tensor]:
    """The weights of a finished run.

    Raises:
        UserError: the folder holds no finished run.
    """
    _check_run(run_dir)
    return read_weights(weights_file(run_dir))


def open_run(run_dir: Path) -> ComponentGraph:
    """The checked recipe of a finished run.

    Raises:
        UserError: the folder holds no finished run, or its recipe is wrong.
    """
    _check_run(run_dir)
    return ComponentGraph.from_recipe(load_recipe(run_dir / RECIPE_FILE))


def load_generator(
    graph: ComponentGraph, run_dir: Path, device: torch.device | str = "cpu", average: str | None = None
) -> Generator:
    """Build a run's generator with its weights, in evaluation mode; training-only parts are left behind.

    Args and errors are those of :func:`load_method`; a run that trained something else is an error, too.
    """
    generator = load_method(graph, run_dir, average).generator
    if generator is None:
        raise UserError(f"{run_dir}: {graph.model.cls.__name__} trains no generator, there is nothing to sample")
    return generator.to(device)


def load_method(graph: ComponentGraph, run_dir: Path, average: str | None = None) -> Method:
    """Build a run's method with the weights that the folder holds, frozen and in evaluation mode.

    Weights for training only, such as projections, are not in a run's artifact and stay at random.

    Args:
        graph: what :func:`open_run` returned.
        run_dir: the run folder.
        average: an average of the weights other than the exported one, by its name in the recipe.

    Raises:
        UserError: the weights are missing, damaged or do not fit the recipe.
    """
    path = weights_file(run_dir, average)
    if average is not None and not path.is_file():
        names = [file.stem.removeprefix("generator-") for file in run_dir.glob("generator-*.safetensors")]
        raise UserError(
            f"{run_dir}: no average '{average}' (there is: {', '.join(names) or 'none'}){nearest(average, names)}"
        )
    state = read_weights(path)
    try:
        method = graph.build(lambda name: read_weights(prerequisite_file(run_dir, name)), for_training=False)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{run_dir}: a prerequisite's weights do not fit {run_dir / RECIPE_FILE}: {error}") from None
    try:
        check_state(method.artifact_module.state_dict(), state)
    except ValueError as error:
        raise UserError(f"{path}: does not fit {run_dir / RECIPE_FILE}: {error}") from None
    method.artifact_module.load_state_dict(state)
    return method.eval().requires_grad_(False)


def _check_run(run_dir: Path) -> None:
    if not run_dir.is_dir():
        siblings = [p.name for p in run_dir.parent.iterdir() if p.is_dir()] if run_dir.parent.is_dir() else []
        raise UserError(f"{run_dir}: no such run folder{nearest(run_dir.name, siblings)}")
    missing = [name for name in (RECIPE_FILE, WEIGHTS_FILE) if not (run_dir / name).is_file()]
    if missing:
        hint = "; training has not finished: tools/train.py with --resume" if (run_dir / RECIPE_FILE).exists() else ""
        raise UserError(f"{run_dir}: not a finished run: {' and '.join(missing)} missing{hint}")
