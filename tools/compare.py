"""Finished runs beside each other in one picture."""

import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while packages load ends without a traceback

from genflow.cli.parser import Parser, default_device, device, run_tool
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
    parser.add_argument("--device", type=device, default=default_device())
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture that lies there")
    parser.add_imports()
    arguments = parser.parse_args()
    scales = arguments.guidance or [None]
    if len(scales) not in (1, len(arguments.runs)):
        parser.error(f"--guidance: found {len(scales)} scales, expected one, or one for each of the runs")

    from genflow.inference.write_images import check_out
    from genflow.runs.folder import open_run
    from genflow.runs.side_by_side import draw, gather, training_data

    check_out(arguments.out, (".png",), overwrite=arguments.overwrite)
    runs = [open_run(path, (), arguments.allow_imports) for path in arguments.runs]
    data, entries = training_data(runs), []
    with progress_bar("looking through the training pictures") as bar:
        for run, scale in zip(runs, scales * len(runs) if len(scales) == 1 else scales, strict=True):
            task = bar.add_task(run.path.name, total=len(data))
            told = lambda done, _, task=task: bar.update(task, completed=done)  # noqa: E731
            entries.append(gather(run, data, scale, arguments.seed, arguments.device, told))
    draw(entries, data, runs[0].class_names, arguments.out)
    for entry in entries:
        apart = entry.nearest.distances.median()
        print(f"{entry.name}: nearest training pictures {apart:.1f} grey levels away in the middle of twelve")
    print(arguments.out)


if __name__ == "__main__":
    run_tool(main)
