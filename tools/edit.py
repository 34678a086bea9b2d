"""Edit pictures with a finished BiFlow run, without training."""

import math
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from genflow.cli.parser import Parser, default_device, device, run_tool
from genflow.cli.progress import progress_bar
from genflow.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from genflow.config.graph import ComponentGraph
    from genflow.methods.base import Method

DESCRIPTION = (
    "Edit pictures with a finished BiFlow run, without training: its flow encodes them, its generator makes new ones "
    "in one pass. Edit i of a seed is the same whatever the batch size."
)
INPAINT = "Fill a hole. Rows of the picture: before, masked, after, and with --paste the known pixels pasted."
CLASS_EDIT = "Show images of one class as another. Rows of the picture: before, after."
EXAMPLE = "python tools/edit.py work_dirs/biflow_digits"
INPAINT_EXAMPLE = (
    f"{EXAMPLE} inpaint --mask bottom --paste --cfg-options train_dataloader.dataset.split=test --out inpainted.png"
)
CLASS_EDIT_EXAMPLE = f"{EXAMPLE} class-edit --from 3 --to 8 --num 32 --out edited.png"


def parse() -> Namespace:
    parser = Parser(DESCRIPTION, f"{INPAINT_EXAMPLE}\n  {CLASS_EDIT_EXAMPLE}")
    parser.add_argument("run", type=Path, help="run folder")

    def subparser(prog: str, description: str, example: str) -> Parser:
        made = Parser(description, example)
        made.prog = prog
        return made

    edits = parser.add_subparsers(dest="edit", required=True, parser_class=subparser)
    inpaint = edits.add_parser("inpaint", help=INPAINT, description=INPAINT, example=INPAINT_EXAMPLE)
    _add_common(inpaint)
    inpaint.add_argument(
        "--mask",
        required=True,
        metavar="HOLE",
        help="top,left,height,width in pixels; left, right, top, bottom (a half) or center; or a picture file that "
        "is white where pixels are known",
    )
    inpaint.add_argument("--paste", action="store_true", help="put the known pixels back")
    inpaint.add_argument("--labels", type=int, nargs="+", help="class of all images, or of each; -1 for no class")
    inpaint.add_argument("--fill", choices=["mean", "zero"], default="mean", help="what the flow sees in the hole")
    change = edits.add_parser("class-edit", help=CLASS_EDIT, description=CLASS_EDIT, example=CLASS_EDIT_EXAMPLE)
    _add_common(change)
    change.add_argument("--from", type=int, required=True, dest="old", metavar="CLASS", help="class of the images")
    change.add_argument("--to", type=int, required=True, dest="new", metavar="CLASS", help="class to show them as")
    return parser.parse_args()


def _add_common(parser: Parser) -> None:
    parser.add_argument(
        "images",
        type=Path,
        nargs="*",
        help="pictures, folders of PNGs, or .npz archives as tools/sample.py writes them; the class is the archive's, "
        "or N of a name that ends in _classN (default: images of the recipe's data set)",
    )
    parser.add_argument("--num", type=int, help="edit the first so many (default: all files, or 16 of a data set)")
    parser.add_argument(
        "--guidance", type=float, nargs="+", help="guidance scale, or one for each group (default: the recipe's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--average", help="another average of the weights than the exported one, by name")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", type=device, default=default_device())
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override recipe entries; train_dataloader.dataset.split=test takes the held-out digits",
    )
    parser.add_argument("--out", type=Path, required=True, help="picture of before and after, a .png")
    parser.add_argument("--out-images", type=Path, help="the edited images alone: an .npz, or a folder of PNGs")


def main() -> None:
    arguments = parse()
    check_numbers(arguments)

    import torch

    from genflow.draws import Draws
    from genflow.inference.editing import class_edit, edit_in_batches, inpaint, paste, pixel_shape
    from genflow.inference.read_images import list_files, read_mask
    from genflow.inference.write_images import save_rows, write_images

    inpainting = arguments.edit == "inpaint"
    files = list_files(arguments.images)
    check_outputs(arguments, files)
    graph, method = open_method(arguments)
    check_classes(arguments, method.num_classes)
    mask = read_mask(arguments.mask, *pixel_shape(method.codec)[1:]) if inpainting else None
    images, labels = read_pictures(arguments, files, graph, method)
    wanted = labels if inpainting else torch.full_like(labels, arguments.new)

    def edit(batch: "Tensor", positions: "Tensor") -> "Tensor":
        draws = Draws(arguments.seed, positions)
        old, new = (values.to(arguments.device)[positions] for values in (labels, wanted))
        if inpainting:
            return inpaint(method, batch, mask, old, draws, arguments.guidance, arguments.fill)
        return class_edit(method, batch, old, new, draws, arguments.guidance)

    parts = []
    with progress_bar("editing") as bar:
        task = bar.add_task("", total=len(images))
        for part in edit_in_batches(method.codec, images, edit, not files, arguments.batch_size, arguments.device):
            parts.append(part)
            bar.advance(task, len(part[0]))
    before, after = (torch.cat(part) for part in zip(*parts, strict=True))
    rows, result = [before, after], after
    if inpainting:
        rows.insert(1, paste(before, torch.zeros_like(before), mask))
        if arguments.paste:
            result = paste(before, after, mask)
            rows.append(result)
    save_rows(rows, arguments.out)
    if arguments.out_images:
        write_images(result, wanted, arguments.out_images, 1)
    print(f"{len(images)} images edited: {arguments.out}")
    if inpainting and mask.any():
        error = (after - before).abs()[..., mask].mean()
        print(f"mean absolute error on known pixels before pasting: {error:.4f} of a range of 2")
    evaluator = graph.section("evaluation")
    accuracy = None if evaluator is None or (wanted < 0).any() else evaluator.accuracy(result, wanted)
    if accuracy is not None:
        what = "its own class" if inpainting else f"class {arguments.new}"
        print(f"share read as {what}: {accuracy:.4f} ({type(evaluator).__name__})")


def check_numbers(arguments: Namespace) -> None:
    for name in ("num", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
    for scale in arguments.guidance or []:
        if not math.isfinite(scale):
            raise UserError(f"--guidance: found {scale}, expected a finite number")


def check_outputs(arguments: Namespace, files: list[Path]) -> None:
    """Outputs of a known sort, in places of their own."""
    inputs = {file.resolve() for file in files}
    if arguments.edit == "inpaint" and Path(arguments.mask).is_file():
        inputs.add(Path(arguments.mask).resolve())
    folders = {file.parent for file in inputs}
    outputs = {"--out": (arguments.out, ".png", ""), "--out-images": (arguments.out_images, ".npz", " or a folder")}
    for option, (path, suffix, more) in outputs.items():
        if path is None:
            continue
        folder = bool(more) and not path.suffix
        if path.suffix != suffix and not folder:
            raise UserError(f"{option}: found '{path}', expected a name ending in {suffix}{more}")
        if path.exists() and path.is_dir() != folder:
            raise UserError(f"{option}: '{path}' is a {'folder' if path.is_dir() else 'file'} already")
        if path.resolve() in (folders if folder else inputs):
            raise UserError(f"{option}: '{path}' holds what is to be edited; name another place")


def open_method(arguments: Namespace) -> tuple["ComponentGraph", "Method"]:
    from genflow.config.graph import ComponentGraph
    from genflow.config.recipe import load_recipe
    from genflow.flow_teachers.base import FlowTeacher
    from genflow.runs.folder import RECIPE_FILE, load_method, open_run

    graph = open_run(arguments.run)
    if arguments.cfg_options:
        graph = ComponentGraph.from_recipe(load_recipe(arguments.run / RECIPE_FILE, arguments.cfg_options))
    method = load_method(graph, arguments.run, arguments.average)
    if not isinstance(getattr(method, "teacher", None), FlowTeacher):
        name = type(method).__name__
        raise UserError(f"{arguments.run}: a run of {name} has no teacher; editing needs a run of BiFlow")
    return graph, method.to(arguments.device)


def check_classes(arguments: Namespace, classes: int) -> None:
    inpainting = arguments.edit == "inpaint"
    given = {"--labels": arguments.labels or []} if inpainting else {"--from": [arguments.old], "--to": [arguments.new]}
    for option, labels in given.items():
        for label in labels:
            if not classes:
                raise UserError(f"{option}: the generator has no classes")
            if not (label == -1 and inpainting) and not 0 <= label < classes:
                raise UserError(f"{option}: found {label}, expected 0 to {classes - 1}")


def read_pictures(
    arguments: Namespace, files: list[Path], graph: "ComponentGraph", method: "Method"
) -> tuple["Tensor", "Tensor"]:
    """The images that are to be edited, and their labels."""
    import torch

    from genflow.inference.editing import pixel_shape
    from genflow.inference.read_images import read_dataset, read_images

    inpainting = arguments.edit == "inpaint"
    chosen = None if inpainting else arguments.old
    if files:
        images, labels = read_images(files, pixel_shape(method.codec), chosen)
        images, labels = images[: arguments.num], labels[: arguments.num]
    else:
        loader = graph.section("train_dataloader")
        if loader is None:
            raise UserError(f"{graph.source}: train_dataloader: missing; name the images to edit")
        if loader.dataset.image_shape != method.image_shape:
            found = f"its images are {loader.dataset.image_shape}, the model takes {method.image_shape}"
            raise UserError(f"{graph.source}: train_dataloader.dataset: {found}")
        images, labels = read_dataset(loader.dataset, arguments.num or 16, chosen)
    if not method.num_classes:
        return images, torch.zeros_like(labels)
    if inpainting and arguments.labels:
        if len(arguments.labels) not in (1, len(images)):
            raise UserError(f"--labels: found {len(arguments.labels)} classes for {len(images)} images")
        return images, torch.tensor(arguments.labels).expand(len(images))
    unknown = int((labels < 0).sum())
    if unknown:
        raise UserError(f"--labels: missing, {unknown} of the pictures have no class in their name (_classN)")
    if labels.max() >= method.num_classes:
        raise UserError(f"found an image of class {labels.max()}, expected 0 to {method.num_classes - 1}")
    return images, labels


if __name__ == "__main__":
    run_tool(main)
