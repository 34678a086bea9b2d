"""What is checked before anything is trained or written."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process

from genflow.analysis.description import build_on_meta, cost_or_reason
from genflow.analysis.flops import GeneratorCost
from genflow.codecs.base import Codec
from genflow.config.comparison import first_difference
from genflow.config.graph import ComponentGraph
from genflow.config.sections import LoaderSection
from genflow.engine.checkpoint import find_checkpoints, newest_readable
from genflow.engine.rehearsal import MANY_MODULES, rehearse
from genflow.engine.sizes import check_loader, check_memory
from genflow.errors import UserError
from genflow.feature_encoders.base import FeatureEncoder
from genflow.field_estimators.base import FieldEstimator
from genflow.inference.editing import pixel_shape
from genflow.methods.base import Method
from genflow.runs.folder import RAW, RunFolder, open_run
from genflow.weights import read_checkpoint

AUTO = "auto"


@dataclass(frozen=True)
class Checked:
    """What the checks found.

    Args:
        data: the recipe's training data.
        cost: of the generator, or why it is not counted; None where none is trained.
    """

    data: LoaderSection
    cost: GeneratorCost | str | None


def check(graph: ComponentGraph) -> Checked:
    """See that a recipe can be trained, before a prerequisite trains for hours.

    Raises:
        UserError: a section is missing, the model does not fit the data or lacks weights that training needs.
    """
    for name in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if graph.recipe.arguments[name] is None:
            raise UserError(f"{graph.source}: {name}: missing, training needs it")
    if RAW in graph.section("ema"):
        raise UserError(f"{graph.source}: ema.{RAW}: this is what the weights themselves are called, take another name")
    check_loader(graph)
    if graph.section("visualizer").vis_backends:
        from genflow.engine.visualizer import build_backends  # it imports OpenCV

        build_backends(graph, Path("vis_data"))
    data: LoaderSection = graph.section("train_dataloader")
    objects: dict[str, Any] = {}
    method: Method = build_on_meta(graph, objects)
    check_memory(graph, method, data, objects)
    _check_data(graph, method, data)
    _check_evaluation(graph, method)
    for module in method.modules():
        if isinstance(module, FieldEstimator) and module.keeps_graph and graph.section("train_cfg").checkpointing:
            name = type(module).__name__
            raise UserError(f"{graph.source}: train_cfg.checkpointing: not with this {name}, which keeps a graph")
        if isinstance(module, Codec) and not module.can_decode and method.generator is not None:
            problem = f"the codec has no weights, so samples cannot be decoded: {module.weights_hint}"
            raise UserError(f"{graph.source}: {problem}")
        if isinstance(module, FeatureEncoder):
            module.fetch()
            if not module.has_weights:
                name = type(module).__name__
                raise UserError(f"{graph.source}: the encoder {name} has no weights: {module.weights_hint}")
    cost = None if method.generator is None else _cost(graph, method)
    if isinstance(cost, str):  # nothing that is trained depends on it
        say(f"warning: not counted: {cost}")
    rehearse(graph, method, data, objects, cost.generator_macs if isinstance(cost, GeneratorCost) else 0)
    return Checked(data, cost)


def _cost(graph: ComponentGraph, method: Method) -> GeneratorCost | str:
    modules = sum(1 for _ in method.modules())
    return f"it takes minutes for {modules} modules" if modules > MANY_MODULES else cost_or_reason(graph)


def check_untrained(graph: ComponentGraph, folder: RunFolder, kept: Collection[str] = ()) -> None:
    """As :func:`check` for every prerequisite that will be trained, not being ``kept``, before the first of them is.

    Raises:
        UserError: as :func:`check`.
    """
    for name, prerequisite in graph.prerequisites.items():
        run = RunFolder(prerequisite.folder(folder.path))
        if name not in kept and not run.is_complete:
            check(prerequisite.graph)
            check_untrained(prerequisite.graph, run)


def _check_data(graph: ComponentGraph, method: Method, data: LoaderSection) -> None:
    dataset, source = data.dataset, graph.source
    if method.feed is not None:
        try:
            method.feed.check(data.batch_size, get_world_size())
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
    where = f"{source}: train_dataloader.dataset"
    if dataset.image_shape != method.image_shape:
        _, height, width = dataset.image_shape
        why = "" if height == width else "; backbones take squares, their positions and windows have one side"
        raise UserError(f"{where}: its images are {dataset.image_shape}, the model takes {method.image_shape}{why}")
    if method.num_classes not in (0, dataset.num_classes):
        raise UserError(f"{where}: it has {dataset.num_classes} classes, the model {method.num_classes}")
    codec = graph.build_argument("codec")  # the method's is on the meta device
    if isinstance(codec, Codec):
        try:
            dataset.check_codec(codec.description, codec.normalize)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _check_evaluation(graph: ComponentGraph, method: Method) -> None:
    evaluator, generator = graph.section("evaluation"), method.generator
    if generator is None:
        return
    where = "default_hooks.samples"
    try:
        generator.condition(torch.zeros(1, dtype=torch.int64), graph.section("default_hooks").samples.guidance)
        where = "evaluation"
        if evaluator is not None:
            evaluator.check(generator.num_classes, pixel_shape(generator.codec))
    except UserError as error:
        raise UserError(f"{graph.source}: {where}: {error}") from None


def find_resume(folder: RunFolder, resume: str | None) -> Path | None:
    """The checkpoint to start from, readable; with ``auto`` the newest that is, and a warning for those passed over.

    Raises:
        UserError: the folder holds a run that would be overwritten, or the checkpoint, or every one, is damaged.
    """
    found = find_checkpoints(folder.path)
    finished = folder.weights_file().exists()
    holds_run = bool(found) or finished or folder.scalars_file.exists()
    if resume is None and holds_run:
        raise UserError(f"{folder}: holds a run already; pass --resume to continue it or another --work-dir")
    if resume == AUTO:
        if finished and not found:
            raise UserError(f"{folder}: is finished and has no checkpoint to go on from; pass another --work-dir")
        checkpoint = newest_readable(folder.path)
    else:
        checkpoint = None if resume is None else Path(resume)
        if checkpoint is not None:
            read_checkpoint(checkpoint)
        if checkpoint is not None and holds_run and checkpoint.resolve().parent.parent != folder.path.resolve():
            raise UserError(f"{folder}: holds another run than {checkpoint}; pass another --work-dir")
    if resume == AUTO and holds_run and checkpoint is None:
        say(f"{folder}: has no checkpoint yet, starting from the beginning")
    return checkpoint


def check_prerequisite(folder: RunFolder, expected: ComponentGraph, where: str) -> None:
    """See that a finished run trained what a recipe expects of its prerequisite, on the same data.

    Raises:
        UserError: it did not; names the first entry that differs, with both values.
    """
    difference = first_difference(open_run(folder.path).graph, expected)
    if difference:
        raise UserError(f"{where}: {folder} was trained with another recipe: {difference}; train it in another folder")


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if is_main_process():
        print(text, flush=True)
