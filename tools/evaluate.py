"""Evaluate a finished run."""

import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while packages load ends without a traceback

from genflow.cli.parser import Parser, default_device, device, run_tool
from genflow.cli.progress import console, progress_bar


def main() -> None:
    parser = Parser(
        "Measure a finished run as its recipe's evaluation section says, beside real data; "
        "the figures also go to the run's metrics.json.",
        "python tools/evaluate.py work_dirs/biflow_digits --guidance 1.0",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the recipe's)")
    parser.add_argument("--steps", type=int, help="steps from noise to data (default: the recipe's, or one)")
    parser.add_argument(
        "--interval", type=float, nargs=2, metavar=("START", "END"), help="times with guidance (default: the recipe's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--average",
        help="average of the weights, by its name in the recipe; none: the weights themselves (default: as exported)",
    )
    parser.add_argument("--device", type=device, default=default_device())
    parser.add_imports()
    arguments = parser.parse_args()

    from genflow.runs.evaluate import evaluate_run, report_table
    from genflow.runs.folder import open_run

    run = open_run(arguments.run, allow_imports=arguments.allow_imports)
    with progress_bar("evaluating") as bar:
        task = bar.add_task("", total=None)
        report = evaluate_run(
            run,
            arguments.seed,
            arguments.guidance,
            arguments.average,
            arguments.device,
            lambda done, total: bar.update(task, completed=done, total=total),
            steps=arguments.steps,
            interval=arguments.interval,
        )
    console().print(report_table(report))


if __name__ == "__main__":
    run_tool(main)
