"""What is checked before anything is trained or written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process

from genflow.analysis.description import build_on_meta, count_recipe
from genflow.analysis.flops import GeneratorCost
from genflow.codecs.base import Codec
from genflow.config.comparison import first_difference
from genflow.config.graph import ComponentGraph
from genflow.config.sections import LoaderSection
from genflow.engine.checkpoint import find_checkpoints
from genflow.errors import UserError
from genflow.feature_encoders.base import FeatureEncoder
from genflow.field_estimators.base import FieldEstimator
from genflow.methods.base import Method
from genflow.runs.folder import RunFolder, open_run
from genflow.weights import read_checkpoint

AUTO = "auto"


@dataclass(frozen=True)
class Checked:
    """What the checks found.

    Args:
        data: the recipe's training data.
        cost: of the generator; None where none is trained.
        checkpoint: the checkpoint to go on from; None to start.
    """

    data: LoaderSection
    cost: GeneratorCost | None
    checkpoint: Path | None


def check(graph: ComponentGraph, folder: RunFolder, resume: str | None) -> Checked:
    """See that a recipe can be trained in ``folder``, before a prerequisite trains for hours.

    Args:
        graph: the recipe.
        folder: its run folder.
        resume: see :class:`genflow.engine.train.TrainOptions`.

    Raises:
        UserError: a section is missing, the model does not fit the data or lacks weights that training needs, or the
            folder holds another run.
    """
    for name in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if graph.recipe.arguments[name] is None:
            raise UserError(f"{graph.source}: {name}: missing, training needs it")
    data: LoaderSection = graph.section("train_dataloader")
    method: Method = build_on_meta(graph)
    _check_data(graph.source, method, data)
    for module in method.modules():
        if isinstance(module, FieldEstimator) and module.keeps_graph and graph.section("train_cfg").checkpointing:
            name = type(module).__name__
            raise UserError(f"{graph.source}: train_cfg.checkpointing: not with this {name}, which keeps a graph")
        if isinstance(module, Codec) and not module.can_decode and method.generator is not None:
            problem = f"the codec has no weights, so samples cannot be decoded: {module.weights_hint}"
            raise UserError(f"{graph.source}: {problem}")
        if isinstance(module, FeatureEncoder) and not module.has_weights:
            name = type(module).__name__
            raise UserError(f"{graph.source}: the encoder {name} has no weights: {module.weights_hint}")
    cost = None if method.generator is None else count_recipe(graph)
    return Checked(data, cost, find_resume(folder, resume))


def _check_data(source: str, method: Method, data: LoaderSection) -> None:
    dataset: Any = data.dataset
    if method.feed is not None:
        try:
            method.feed.check(data.batch_size, get_world_size())
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
    where = f"{source}: train_dataloader.dataset"
    if dataset.image_shape != method.image_shape:
        raise UserError(f"{where}: its images are {dataset.image_shape}, the model takes {method.image_shape}")
    if method.num_classes not in (0, dataset.num_classes):
        raise UserError(f"{where}: it has {dataset.num_classes} classes, the model {method.num_classes}")


def find_resume(folder: RunFolder, resume: str | None) -> Path | None:
    """The checkpoint to start from, readable.

    Raises:
        UserError: the folder holds a run that would be overwritten, or the checkpoint is damaged.
    """
    found = find_checkpoints(folder.path)
    finished = folder.weights_file().exists()
    holds_run = bool(found) or finished or folder.scalars_file.exists()
    if resume is None and holds_run:
        raise UserError(f"{folder}: holds a run already; pass --resume to continue it or another --work-dir")
    if resume == AUTO:
        if finished and not found:
            raise UserError(f"{folder}: is finished and has no checkpoint to go on from; pass another --work-dir")
        checkpoint = found[-1] if found else None
    else:
        checkpoint = None if resume is None else Path(resume)
        if checkpoint is not None and holds_run and checkpoint.resolve().parent.parent != folder.path.resolve():
            raise UserError(f"{folder}: holds another run than {checkpoint}; pass another --work-dir")
    if checkpoint is not None:
        read_checkpoint(checkpoint)
    elif resume == AUTO and holds_run:
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
