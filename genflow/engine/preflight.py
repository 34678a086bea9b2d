"""What is checked before anything is trained or written."""

from pathlib import Path
from typing import Any

from genflow.analysis.description import build_on_meta, count_recipe
from genflow.analysis.flops import GeneratorCost
from genflow.codecs.base import Codec
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import load_recipe
from genflow.engine.checkpoint import find_checkpoints
from genflow.engine.distributed import is_main, rank_and_size
from genflow.errors import UserError
from genflow.feature_encoders.base import FeatureEncoder
from genflow.methods.base import Method
from genflow.runs import folder as artifacts
from genflow.weights import read_checkpoint

AUTO = "auto"
ENCODER_HINT = "set its 'weights', or train without it, e.g. --cfg-options model.perceptual=null"
CODEC_HINT = "set its 'weights', e.g. GENFLOW_SD_VAE=path/to/sd-vae-ft-mse for the ImageNet recipes"


def check_model(graph: ComponentGraph, dataset: Any, batch_size: int) -> GeneratorCost | None:
    """Build the model on the meta device, see that it fits the data, and count its generator, if it trains one.

    Raises:
        UserError: it does not fit, or lacks weights that training needs.
    """
    method: Method = build_on_meta(graph)
    size = rank_and_size()[1]
    try:
        method.check_batch(batch_size, size)
    except UserError as error:
        raise UserError(f"{graph.source}: {error}") from None
    if dataset.image_shape != method.image_shape:
        raise UserError(
            f"{graph.source}: train_dataloader.dataset: its images are {dataset.image_shape}, "
            f"the model takes {method.image_shape}"
        )
    if method.num_classes not in (0, dataset.num_classes):
        raise UserError(
            f"{graph.source}: train_dataloader.dataset: it has {dataset.num_classes} classes, "
            f"the model {method.num_classes}"
        )
    for module in method.modules():
        if isinstance(module, Codec) and not module.can_decode and method.generator is not None:
            raise UserError(f"{graph.source}: the codec has no weights, so samples cannot be decoded: {CODEC_HINT}")
        if isinstance(module, FeatureEncoder) and not module.has_weights:
            name = type(module).__name__
            raise UserError(f"{graph.source}: the encoder {name} has no weights: {ENCODER_HINT}")
    return None if method.generator is None else count_recipe(graph)


def find_resume(work_dir: Path, resume: str | None) -> Path | None:
    """The checkpoint to start from, readable.

    Raises:
        UserError: the folder holds a run that would be overwritten, or the checkpoint is damaged.
    """
    found = find_checkpoints(work_dir)
    finished = (work_dir / artifacts.WEIGHTS_FILE).exists()
    holds_run = bool(found) or finished or (work_dir / "scalars.jsonl").exists()
    if resume is None and holds_run:
        raise UserError(f"{work_dir}: holds a run already; pass --resume to continue it or another --work-dir")
    if resume == AUTO:
        if finished and not found:
            raise UserError(f"{work_dir}: is finished and has no checkpoint to go on from; pass another --work-dir")
        checkpoint = found[-1] if found else None
    else:
        checkpoint = None if resume is None else Path(resume)
        if checkpoint is not None and holds_run and checkpoint.resolve().parent.parent != work_dir.resolve():
            raise UserError(f"{work_dir}: holds another run than {checkpoint}; pass another --work-dir")
    if checkpoint is not None:
        read_checkpoint(checkpoint)
    elif resume == AUTO and holds_run:
        say(f"{work_dir}: has no checkpoint yet, starting from the beginning")
    return checkpoint


def check_prerequisite(run_dir: Path, expected: dict[str, Any], where: str) -> None:
    """See that a finished run was trained with the model that this recipe says."""
    found = load_recipe(run_dir / artifacts.RECIPE_FILE).to_dict().get("model", {})
    difference = _first_difference(found, expected, "model")
    if difference:
        raise UserError(f"{where}: {run_dir} was trained with another recipe: {difference}; train it in another folder")


def _first_difference(found: Any, expected: Any, path: str) -> str | None:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            difference = _first_difference(found.get(key), expected.get(key), f"{path}.{key}")
            if difference:
                return difference
        return None
    return None if found == expected else f"{path} is {found!r} there and {expected!r} here"


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if is_main():
        print(text, flush=True)
