"""Run folders: the resolved recipe, the trained weights and the metrics, written by training and read by all else."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.config.graph import ComponentGraph
from genflow.config.recipe import dump_yaml
from genflow.errors import UserError, nearest
from genflow.generators.base import Generator
from genflow.methods.base import Method
from genflow.weights import check_state, read_weights, write_atomically, write_text, write_weights


class RunFolder:
    """The files of a run, finished or not.

    Args:
        path: the folder; it need not be there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.metrics_file = self.path / "metrics.json"
        self.scalars_file = self.path / "scalars.jsonl"

    def __str__(self) -> str:
        return str(self.path)

    def weights_file(self, average: str | None = None) -> Path:
        """The file of the exported weights, or of another average of them."""
        return self.path / ("generator.safetensors" if average is None else f"generator-{average}.safetensors")

    def prerequisite_file(self, name: str) -> Path:
        """Where the run keeps the weights of a prerequisite."""
        return self.path / "prerequisites" / f"{name}.safetensors"

    @property
    def averages(self) -> list[str]:
        """The averages beside the exported one that the folder holds."""
        files = sorted(self.path.glob("generator-*.safetensors"))
        return [file.stem.removeprefix("generator-") for file in files]

    @property
    def is_complete(self) -> bool:
        """Whether it holds a finished artifact."""
        return self.weights_file().is_file() and self.recipe_file.is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds; empty without the file.

        Raises:
            UserError: the file is not what :meth:`write_metrics` writes.
        """
        try:
            return json.loads(self.metrics_file.read_text(encoding="utf-8")) if self.metrics_file.is_file() else {}
        except ValueError as error:
            raise UserError(f"{self.metrics_file}: not valid JSON: {error}; repair or remove it") from None

    def write_metrics(self, update: Mapping[str, Any]) -> None:
        """Merge ``update`` into metrics.json; errors as :attr:`metrics`."""
        write_text(self.metrics_file, json.dumps({**self.metrics, **update}, indent=2) + "\n")

    def write_recipe(self, graph: ComponentGraph) -> None:
        """Write the resolved recipe, which stands alone: prerequisites are written out inside it."""
        write_text(self.recipe_file, dump_yaml(graph.plain))

    def write_artifact(self, graph: ComponentGraph, method: Method, average: str | None = None) -> None:
        """Write the weights of what the method trains (the generator's network, never the codec).

        Those that only training needs are left out.
        """
        state = method.artifact_module.state_dict()
        kept = graph.build_artifact().state_dict()
        write_weights(self.weights_file(average), {name: state[name] for name in kept})

    def keep_prerequisite(self, name: str, source: "RunFolder") -> None:
        """Take over the weights of the finished run ``source``, so that this folder stands alone.

        Both folders share one copy on disk where the file system can: files of weights are replaced, never changed.
        """

        def link(temporary: Path) -> None:
            temporary.unlink()
            try:
                os.link(source.weights_file(), temporary)
            except OSError:  # another file system
                shutil.copyfile(source.weights_file(), temporary)

        write_atomically(self.prerequisite_file(name), link)


class Run(RunFolder):
    """A finished run: what it trained, and what it takes to use it. :func:`open_run` makes one.

    Args:
        path: the run folder.
        graph: its checked recipe.
    """

    def __init__(self, path: str | Path, graph: ComponentGraph):
        super().__init__(path)
        self.graph = graph

    def weights(self, average: str | None = None) -> dict[str, Tensor]:
        """The weights of what the run trained, by name.

        Args:
            average: an average of the weights other than the exported one, by its name in the recipe.

        Raises:
            UserError: there is no such average, or the file is damaged.
        """
        path = self.weights_file(average)
        if average is not None and not path.is_file():
            names = self.averages
            known = f"(there is: {', '.join(names) or 'none'})"
            raise UserError(f"{self}: no average '{average}' {known}{nearest(average, names)}")
        return read_weights(path)

    def method(self, average: str | None = None) -> Method:
        """The method with its weights, frozen and in evaluation mode, on the CPU.

        Weights for training only, such as projections, are not in a run's artifact and stay at random.

        Args:
            average: as in :meth:`weights`.

        Raises:
            UserError: the weights are missing, damaged or do not fit the recipe.
        """
        state = self.weights(average)
        try:
            method: Method = self.graph.build(self._prerequisite_weights, for_training=False)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self}: a prerequisite's weights do not fit {self.recipe_file}: {error}") from None
        try:
            check_state(method.artifact_module.state_dict(), state)
        except ValueError as error:
            raise UserError(f"{self.weights_file(average)}: does not fit {self.recipe_file}: {error}") from None
        method.artifact_module.load_state_dict(state)
        return method.eval().requires_grad_(False)

    def generator(self, device: torch.device | str = "cpu", average: str | None = None) -> Generator:
        """The generator with its weights, in evaluation mode; training-only parts are left behind.

        Args:
            device: where it shall be.
            average: as in :meth:`weights`.

        Raises:
            UserError: as :meth:`method`; or the run trained something else than a generator.
        """
        generator = self.method(average).generator
        if generator is None:
            name = self.graph.model.cls.__name__
            raise UserError(f"{self}: {name} trains no generator, there is nothing to sample")
        return generator.to(device)

    def _prerequisite_weights(self, name: str) -> dict[str, Tensor]:
        return read_weights(self.prerequisite_file(name))


def open_run(path: str | Path, overrides: Iterable[str] = ()) -> Run:
    """Open the folder of a finished run.

    Args:
        path: the run folder.
        overrides: ``key=value`` entries laid over its recipe.

    Raises:
        UserError: the folder holds no finished run, or its recipe is wrong.
    """
    folder = RunFolder(path)
    if not folder.path.is_dir():
        parent = folder.path.parent
        siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
        raise UserError(f"{folder}: no such run folder{nearest(folder.path.name, siblings)}")
    missing = [file.name for file in (folder.recipe_file, folder.weights_file()) if not file.is_file()]
    if missing:
        hint = "; training has not finished: tools/train.py with --resume" if folder.recipe_file.exists() else ""
        raise UserError(f"{folder}: not a finished run: {' and '.join(missing)} missing{hint}")
    return Run(path, ComponentGraph.load(folder.recipe_file, overrides))
