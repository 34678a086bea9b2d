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

    if arguments.what == "biflow-toy":
        _toy(recipes, arguments.out or Path("work_dirs/reproduce/biflow_toy"))
        return

    from genflow.analysis import ablation, reproduce_biflow
    from genflow.analysis.ablation_figure import draw_ablation, sample_strip
    from genflow.weights import write_text

    plan = {"biflow": reproduce_biflow.PAPER_ROWS, "biflow-open-points": reproduce_biflow.OPEN_POINTS}[arguments.what]
    jobs = ablation.jobs_of(plan, recipes, out, arguments.seeds, threads=1)
    with progress_bar(f"training {len(jobs)} runs") as bar:
        task = bar.add_task("", total=len(jobs))
        processes = arguments.processes or ablation.default_processes()
        ablation.train_jobs(jobs, processes, lambda done, total: bar.update(task, completed=done))
    with progress_bar("measuring") as bar:
        task = bar.add_task("", total=len(plan.rows))
        results = ablation.measure(
            plan, out, arguments.seeds, lambda done, total: bar.update(task, completed=done)
        )
    write_text(out / f"{plan.name}.json", json.dumps(results, indent=2) + "\n")
    table = ablation.format_table(plan, results, "../recipes")
    write_text(out / f"{plan.name}.md", table)
    first = out / f"seed_{arguments.seeds[0]}"
    strips = [sample_strip(first / row.run, row.guidance, classes=10) for row in plan.rows]
    draw_ablation(results, strips, out / f"{plan.name}.png")
    print(f"{table}\n{out / plan.name}.md, .json and .png")


def _toy(recipes: Path, out: Path) -> None:
    from genflow.analysis.toy_figure import draw_toy_figure
    from genflow.engine.artifacts import is_complete
    from genflow.engine.train import TrainOptions, train

    run = out / "biflow_toy"
    if not is_complete(run):
        train(recipes / "biflow_toy.yaml", options=TrainOptions(run, resume="auto"))
    draw_toy_figure(run, out / "biflow_toy.png")
    print(out / "biflow_toy.png")


if __name__ == "__main__":
    run_tool(main)
