"""Run folders: the resolved recipe, the trained weights and the metrics, written by training and read by all else."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from genflow.config.graph import ComponentGraph
from genflow.config.imports import AllowImports
from genflow.config.recipe import dump_yaml
from genflow.errors import UserError, nearest, shown
from genflow.evaluation.base import Evaluator
from genflow.generators.base import Generator
from genflow.inference.classes import find_classes
from genflow.methods.base import Method
from genflow.runs.hub import PREFIX, HubName, fetch
from genflow.runs.ownership import check_own, signed
from genflow.weights import (
    check_state,
    naming_disk,
    read_weights,
    target_of,
    write_atomically,
    write_text,
    write_weights,
)

#: The average of the weights that is none: the weights themselves.
RAW = "none"

_CHECKPOINT = re.compile(r"step_([0-9]{8}|[1-9][0-9]{8,})\.pt")


class RunFolder:
    """The files of a run, finished or not.

    Args:
        path: the folder; it need not be there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.metrics_file = self.path / "metrics.json"
        self.metrics_lock = self.path / ".metrics.json.lock"
        self.scalars_file = self.path / "scalars.jsonl"
        self.skipped_file = self.path / "unreadable.txt"
        self.visualizer_folder = self.path / "vis_data"

    def __str__(self) -> str:
        return str(self.path)

    def weights_file(self, average: str | None = None) -> Path:
        """The file of the exported weights, or of another average of them."""
        return self.path / ("generator.safetensors" if average is None else f"generator-{average}.safetensors")

    def prerequisite_file(self, name: str) -> Path:
        """Where the run keeps the weights of a prerequisite."""
        return self.path / "prerequisites" / f"{name}.safetensors"

    def checkpoint_file(self, step: int) -> Path:
        """The training checkpoint after ``step`` updates."""
        return self.path / "checkpoints" / f"step_{step:08d}.pt"

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The training checkpoints by their updates, oldest first."""
        names = ((_CHECKPOINT.fullmatch(file.name), file) for file in (self.path / "checkpoints").glob("step_*.pt"))
        return dict(sorted((int(match[1]), file) for match, file in names if match and file.is_file()))

    def check_own(self) -> None:
        """See that nobody's files are in the way, see :func:`genflow.runs.ownership.check_own`."""
        if not (self.checkpoints or self.weights_file().is_file()):
            check_own(self.path, self.recipe_file, self.scalars_file)

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
            found = json.loads(self.metrics_file.read_text(encoding="utf-8")) if self.metrics_file.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.metrics_file}: not valid JSON: {error}; repair or remove it") from None
        if not isinstance(found, dict):
            raise UserError(f"{self.metrics_file}: found {shown(found)}, expected a JSON object; repair or remove it")
        return found

    def write_metrics(self, update: Mapping[str, Any]) -> None:
        """Merge ``update`` into metrics.json, which several processes may do at once; errors as :attr:`metrics`."""
        with naming_disk(self.metrics_file), FileLock(self.metrics_lock):
            for file in self.path.glob(".metrics.json.*.partial"):  # whoever wrote it held the lock
                if target_of(file) == self.metrics_file:
                    file.unlink()
            write_text(self.metrics_file, json.dumps({**self.metrics, **update}, indent=2) + "\n")

    def write_recipe(self, graph: ComponentGraph) -> None:
        """Write the resolved recipe, which stands alone: prerequisites are written out inside it."""
        write_text(self.recipe_file, signed(dump_yaml(graph.plain)))

    def write_artifact(self, graph: ComponentGraph, state: Mapping[str, Tensor], average: str | None = None) -> None:
        """Write the weights of what a method trains (the generator's network, never the codec).

        Those that only training needs are left out of ``state``.
        """
        kept = graph.build_artifact().state_dict()
        write_weights(self.weights_file(average), {name: state[name] for name in kept})

    def keep_prerequisite(self, name: str, source: Path) -> None:
        """Take over the file of a finished run's weights, so that this folder stands alone.

        Both folders share one copy on disk where the file system can: files of weights are replaced, never changed.
        """

        def link(temporary: Path) -> None:
            temporary.unlink()
            try:
                os.link(source, temporary)
            except OSError:  # another file system
                shutil.copyfile(source, temporary)

        if source.resolve() == self.prerequisite_file(name).resolve():
            return
        write_atomically(self.prerequisite_file(name), link)


class Run(RunFolder):
    """A finished run: what it trained, and what it takes to use it. :func:`open_run` makes one.

    Args:
        path: the run folder.
        graph: its checked recipe.
        overrides: ``key=value`` entries that were laid over its recipe.
        hub: its name on the hub, where ``path`` is a folder of the hub's cache.
    """

    def __init__(
        self, path: str | Path, graph: ComponentGraph, overrides: Iterable[str] = (), hub: HubName | None = None
    ):
        super().__init__(path)
        self.graph = graph
        self.overrides = tuple(overrides)
        self.hub = hub

    def __str__(self) -> str:
        return super().__str__() if self.hub is None else str(self.hub)

    @property
    def name(self) -> str:
        """What tables and pictures call it."""
        return self.path.name if self.hub is None else self.hub.repository.split("/")[1]

    def check_writable(self) -> None:
        """See that figures can be written beside the weights.

        Raises:
            UserError: the folder is the hub's cache, which holds what was published.
        """
        if self.hub is not None:
            repository = str(self.hub).removeprefix(PREFIX)
            take = f"tools/share.py pull {repository} work_dirs/{self.name}"
            raise UserError(f"{self}: lies in the hub's cache, where nothing is written; a run folder of it: {take}")

    def write_metrics(self, update: Mapping[str, Any]) -> None:
        """As :meth:`RunFolder.write_metrics`; errors as :meth:`check_writable`, too."""
        self.check_writable()
        super().write_metrics(update)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes that the run was trained on, in their order; empty where they have none.

        Raises:
            UserError: metrics.json holds something else.
        """
        names = self.metrics.get("class_names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            found = f"class_names: found {shown(names)}"
            raise UserError(f"{self.metrics_file}: {found}, expected a list of names; repair or remove it")
        return names

    def labels(self, *names: str) -> list[int]:
        """The numbers of classes by their names, for :meth:`~genflow.generators.base.Generator.sample`.

        Args:
            names: as ``--labels`` of the tools takes them, see :func:`~genflow.inference.classes.find_classes`.

        Raises:
            UserError: the run's classes have no names, or none of these.
        """
        known = self.class_names
        if not known:
            raise UserError(f"{self}: its classes have no names; give their numbers to sample")
        return find_classes("labels", names, len(known), known)

    @property
    def exported_average(self) -> str:
        """The name of the exported weights in the recipe."""
        return next(iter(self.graph.section("ema")), RAW)

    def weights_file(self, average: str | None = None) -> Path:
        """As :meth:`RunFolder.weights_file`; the exported weights are found by their own name too."""
        return super().weights_file(None if average == self.exported_average else average)

    def weights(self, average: str | None = None) -> dict[str, Tensor]:
        """The weights of what the run trained, by name.

        Args:
            average: an average of the weights, by its name in the recipe; ``none`` for the weights themselves, None for
                the exported ones.

        Raises:
            UserError: there is no such average, or the file is damaged.
        """
        path = self.weights_file(average)
        if average is not None and not path.is_file():
            names = [self.exported_average, *self.averages]
            known = f"(there is: {', '.join(names)})"
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
            method = self.graph.build(self._prerequisite_weights, for_training=False)
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
        return self.generator_of(self.method(average)).to(device)

    def generator_of(self, method: Method) -> Generator:
        """The generator of what :meth:`method` returned, where that is.

        Raises:
            UserError: the run trained something else than a generator.
        """
        if method.generator is None:
            name = self.graph.model.cls.__name__
            raise UserError(f"{self}: {name} trains no generator, there is nothing to sample")
        return method.generator

    def evaluator(self) -> Evaluator:
        """What the recipe's ``evaluation`` says, with the weights of prerequisites that it uses.

        Raises:
            UserError: the recipe says nothing, or weights are missing or damaged.
        """
        evaluator = self.graph.section("evaluation", self._prerequisite_weights)
        if evaluator is None:
            source = self.graph.source
            raise UserError(f"{source}: evaluation: missing; name an evaluator, e.g. {{type: DigitsEvaluator}}")
        return evaluator

    def _prerequisite_weights(self, name: str) -> dict[str, Tensor]:
        return read_weights(self.prerequisite_file(name))


def open_run(path: str | Path, overrides: Iterable[str] = (), allow_imports: AllowImports = False) -> Run:
    """Open a finished run.

    Args:
        path: the run folder, or the name of a run on the Hugging Face Hub, ``hub:user/name`` or
            ``hub:user/name@revision``: its files are fetched to the hub's cache unless they are there.
        overrides: ``key=value`` entries laid over its recipe.
        allow_imports: modules that its recipe may import, see :class:`~genflow.config.imports.Imports`.

    Raises:
        UserError: the folder holds no finished run, its recipe is wrong, or as :func:`genflow.runs.hub.fetch`.
    """
    hub = HubName.parse(str(path)) if str(path).startswith(PREFIX) else None
    folder = RunFolder(path if hub is None else fetch(hub))
    if not folder.path.is_dir():
        parent = folder.path.parent
        siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
        named = HubName.matches(str(path)) and not parent.exists()
        on_hub = f"; one on the hub would be {PREFIX}{path}" if named else ""
        raise UserError(f"{folder}: no such run folder{nearest(folder.path.name, siblings)}{on_hub}")
    missing = [file.name for file in (folder.recipe_file, folder.weights_file()) if not file.is_file()]
    if missing:
        unfinished = folder.recipe_file.exists() and hub is None
        hint = "; training has not finished: tools/train.py with --resume" if unfinished else ""
        raise UserError(f"{hub or folder}: not a finished run: {' and '.join(missing)} missing{hint}")
    overrides = tuple(overrides)
    graph = ComponentGraph.load(folder.recipe_file, overrides, allow_imports=allow_imports)
    return Run(folder.path, graph, overrides, hub)
