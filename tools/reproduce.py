"""Reproduce a paper's comparisons at the size of the embedded data."""

import json
from pathlib import Path

from genflow.cli import Parser, progress_bar, run_tool


def main() -> None:
    parser = Parser(
        "Train the rows of an ablation with several seeds, measure them, and write table.md, results.json and a "
        "figure. Finished runs are used as they are; an interrupted call goes on where it stopped.",
        "python tools/reproduce.py biflow --seeds 0 1 2",
    )
    parser.add_argument("what", choices=["biflow", "biflow-open-points", "biflow-toy"])
    parser.add_argument("--out", type=Path, help="folder (default: work_dirs/reproduce/biflow)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--processes", type=int, help="training runs at a time, one thread each (default: one per core)"
    )
    arguments = parser.parse_args()
    out = arguments.out or Path("work_dirs/reproduce/biflow")
    recipes = Path(__file__).resolve().parents[1] / "recipes"

    from genflow.analysis import ablation, reproduce_biflow
    from genflow.weights import write_text

    plan = {"biflow": reproduce_biflow.PAPER_ROWS, "biflow-open-points": reproduce_biflow.OPEN_POINTS}[arguments.what]
    jobs = ablation.jobs_of(plan, recipes, out, arguments.seeds, threads=1)
    with progress_bar(f"training {len(jobs)} runs") as bar:
        task = bar.add_task("", total=len(jobs))
        ablation.train_jobs(
            jobs,
            arguments.processes or ablation.default_processes(),
            lambda done, total, name: bar.update(task, completed=done),
        )
    results = ablation.measure(plan, out, arguments.seeds)
    write_text(out / f"{plan.name}.json", json.dumps(results, indent=2) + "\n")
    table = ablation.format_table(plan, results, "../recipes")
    write_text(out / f"{plan.name}.md", table)
    print(table)


if __name__ == "__main__":
    run_tool(main)
