"""Edit pictures with a finished BiFlow run, without training."""

import math
from argparse import Namespace
from pathlib import Path

from genflow.cli.parser import Parser, subparser
from genflow.cli.progress import progress_bar
from genflow.errors import UserError

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
    inpaint.add_argument(
        "--labels", nargs="+", metavar="CLASS", help="class of all images, or of each, by name or number; -1 for none"
    )
    inpaint.add_argument("--fill", choices=["mean", "zero"], default="mean", help="what the flow sees in the hole")
    change = edits.add_parser("class-edit", help=CLASS_EDIT, description=CLASS_EDIT, example=CLASS_EDIT_EXAMPLE)
    _add_common(change)
    change.add_argument(
        "--from", required=True, dest="old", metavar="CLASS", help="class of the images, by name or number"
    )
    change.add_argument("--to", required=True, dest="new", metavar="CLASS", help="class to show them as")
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
    parser.add_average()
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_device()
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override recipe entries; train_dataloader.dataset.split=test takes the held-out digits",
    )
    parser.add_imports()
    parser.add_argument("--out", type=Path, required=True, help="picture of before and after, a .png")
    parser.add_argument("--out-images", type=Path, help="the edited images alone: an .npz, or a folder of PNGs")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what lies there; of a folder, pictures named as ours only"
    )


def main() -> None:
    arguments = parse()
    inpainting = arguments.edit == "inpaint"
    check_numbers(arguments)

    import torch

    from genflow.inference import editing
    from genflow.inference.classes import find_classes
    from genflow.inference.read_images import list_files, read_mask
    from genflow.inference.write_images import check_apart, check_out, save_rows, write_images
    from genflow.runs.folder import open_run

    files, left_out = list_files(arguments.images)
    inputs = [*files, Path(arguments.mask)] if inpainting and Path(arguments.mask).is_file() else files
    check_apart(arguments.out, inputs, "--out")
    check_out(arguments.out, (".png",), "--out", arguments.overwrite)
    if arguments.out_images:
        check_apart(arguments.out_images, inputs, "--out-images")
        check_out(arguments.out_images, (".npz", ""), "--out-images", arguments.overwrite)
    run = open_run(arguments.run, arguments.cfg_options, arguments.allow_imports)
    method = run.method(arguments.average).to(arguments.device)
    editing.require_flow(method, run)
    classes, names = method.num_classes, run.class_names
    if inpainting:
        given, chosen, new = find_classes("--labels", arguments.labels or [], classes, names, least=-1), None, None
    else:
        given, (chosen,) = [], find_classes("--from", [arguments.old], classes, names)
        (new,) = find_classes("--to", [arguments.new], classes, names)
    mask = read_mask(arguments.mask, *editing.pixel_shape(method.codec)[1:]) if inpainting else None
    images, labels = editing.load_pictures(method, run.graph, files, arguments.num, chosen)
    labels = editing.label_pictures(labels, given, classes)
    wanted = labels if inpainting else torch.full_like(labels, new)

    def edit(batch, old, new, draws):
        if inpainting:
            return editing.inpaint(method, batch, mask, old, draws, arguments.guidance, arguments.fill)
        return editing.class_edit(method, batch, old, new, draws, arguments.guidance)

    with progress_bar("editing") as bar:
        task = bar.add_task("", total=len(images))
        before, after = editing.edit_pictures(
            method,
            edit,
            images,
            (labels, wanted),
            arguments.seed,
            not files,
            arguments.batch_size,
            lambda count: bar.advance(task, count),
        )
    rows, result = [before, after], after
    if inpainting:
        rows.insert(1, editing.paste(before, torch.zeros_like(before), mask))
        if arguments.paste:
            result = editing.paste(before, after, mask)
            rows.append(result)
    save_rows(rows, arguments.out)
    if arguments.out_images:
        write_images(result, wanted, arguments.out_images, overwrite=arguments.overwrite)
    print("\n".join([*left_out, f"{len(images)} images edited: {arguments.out}"]))
    if inpainting and mask.any():
        error = (after - before).abs()[..., mask].mean()
        print(f"mean absolute error on known pixels before pasting: {error:.4f} of a range of 2")
    what = "its own class" if inpainting else f"class {arguments.new}"
    print_accuracy(run.graph.section("evaluation"), classes, result, wanted, what)


def print_accuracy(evaluator, classes, images, labels, what: str) -> None:
    """Print the share of images that show their labels, if the evaluator can tell."""
    if evaluator is None or not classes or (labels < 0).any():
        return
    try:
        evaluator.check(classes, tuple(images.shape[1:]))
    except UserError:
        return
    accuracy = evaluator.accuracy(images, labels)
    if accuracy is not None:
        print(f"share read as {what}: {accuracy:.4f} ({type(evaluator).__name__})")


def check_numbers(arguments: Namespace) -> None:
    for name in ("num", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
    for scale in arguments.guidance or []:
        if not math.isfinite(scale):
            raise UserError(f"--guidance: found {scale}, expected a finite number")
