"""Sample from a finished run."""

from pathlib import Path

from genflow.cli.parser import Parser
from genflow.cli.progress import progress_bar


def main() -> None:
    parser = Parser(
        "Sample images from a finished run; image i of a seed is the same whatever the batch size.",
        "python tools/sample.py work_dirs/biflow_digits --labels 3 7 --num 64 --guidance 2.0 --out grid.png",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--labels", nargs="+", metavar="CLASS", help="classes to sample, by name or number, in turn (default: all)"
    )
    parser.add_argument("--num", type=int, help="number of images (default: 64)")
    parser.add_argument("--per-class", type=int, metavar="N", help="N images of every class instead of --num")
    parser.add_argument(
        "--guidance", type=float, nargs="+", help="guidance scale, or one for each group (default: the recipe's)"
    )
    parser.add_times()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_average()
    parser.add_argument("--batch-size", type=int, default=256, help="samples generated at once (default: 256)")
    parser.add_argument("--decode-batch", type=int, default=32, help="samples decoded at once (default: 32)")
    for option, what in (("--precision", "the network"), ("--decode-precision", "the decoder")):
        parser.add_argument(option, choices=["float32", "bfloat16"], default="float32", help=f"of {what}")
    parser.add_argument("--compile", action="store_true", help="compile the network first; pays off over many images")
    parser.add_device()
    parser.add_overrides()
    parser.add_argument("--out", type=Path, required=True, help="grid.png, samples.npz, or a folder for one PNG each")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what --out holds; of a folder, pictures named as ours only"
    )
    parser.add_imports()
    arguments = parser.parse_args()

    from genflow.inference.accelerate import accelerate
    from genflow.inference.classes import find_classes
    from genflow.inference.sampling import choose_labels, sample_images
    from genflow.inference.write_images import check_out, write_images
    from genflow.runs.folder import open_run

    check_out(arguments.out, overwrite=arguments.overwrite)
    run = open_run(arguments.run, arguments.cfg_options, arguments.allow_imports)
    generator = run.generator(arguments.device, arguments.average)
    generator.set_sampling(arguments.steps, arguments.interval)
    classes = find_classes("--labels", arguments.labels or [], generator.num_classes, run.class_names)
    labels = choose_labels(generator.num_classes, classes, arguments.num, arguments.per_class)
    accelerate(generator, arguments.precision, arguments.compile, arguments.decode_precision)
    columns = arguments.per_class if arguments.per_class else round(len(labels) ** 0.5)
    with progress_bar("sampling") as bar:
        task = bar.add_task("", total=len(labels))
        batches = sample_images(
            generator,
            labels,
            arguments.seed,
            arguments.guidance,
            arguments.batch_size,
            arguments.device,
            arguments.decode_batch,
            lambda done, _: bar.update(task, completed=done),
        )
        write_images(batches, labels, arguments.out, columns, arguments.overwrite)
    print(f"{len(labels)} images, {generator.nfe} network evaluation(s) each: {arguments.out}")
