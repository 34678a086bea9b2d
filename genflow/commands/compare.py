"""Finished runs beside each other in one picture."""

from pathlib import Path

from genflow.cli.parser import Parser
from genflow.cli.progress import progress_bar


def main() -> None:
    parser = Parser(
        "Draw runs of the same training data side by side: samples by class, their figures, and samples above the "
        "training pictures nearest to them, which would show copies. Figures that a run has not are measured.",
        "python tools/compare.py work_dirs/emoji32_pmf work_dirs/emoji32_drift --out comparison.png",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument(
        "--guidance", type=float, nargs="+", help="guidance scale, or one for each run (default: the recipe's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_device()
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture that lies there")
    parser.add_imports()
    arguments = parser.parse_args()
    scales = arguments.guidance or [None]
    if len(scales) not in (1, len(arguments.runs)):
        parser.error(f"--guidance: found {len(scales)} scales, expected one, or one for each of the runs")

    from genflow.inference.write_images import check_out
    from genflow.runs.folder import open_run
    from genflow.runs.side_by_side import draw, gather, nearest_of, training_data

    check_out(arguments.out, (".png",), overwrite=arguments.overwrite)
    runs = [open_run(path, (), arguments.allow_imports) for path in arguments.runs]
    scales = scales * len(runs) if len(scales) == 1 else scales
    data = training_data(runs)
    pairs = zip(runs, scales, strict=True)
    entries = [gather(run, scale, arguments.seed, arguments.device) for run, scale in pairs]
    with progress_bar("looking through the training pictures") as bar:
        task = bar.add_task("", total=len(data))
        nearest = nearest_of(entries, data, lambda done, _: bar.update(task, completed=done))
    draw(entries, nearest, data, runs[0].class_names, arguments.out)
    for entry, found in zip(entries, nearest, strict=True):
        apart = found.distances.median()
        print(f"{entry.name}: nearest training pictures {apart:.1f} grey levels away in the middle of twelve")
    print(arguments.out)
