"""Reproduce a paper's comparisons at the size of the embedded data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from genflow.cli.parser import Parser
from genflow.cli.progress import progress_bar
from genflow.config.recipe_files import RECIPES

if TYPE_CHECKING:
    from genflow.reproduction.ablation import Ablation, Job


def main() -> None:
    parser = Parser(
        "Train the rows of an ablation with several seeds, measure them, and write a table, the figures as JSON and a "
        "picture; `pmf` also does what `pmf-toy` does. The toys train in the plane and draw it. Finished runs are used "
        "as they are; an interrupted call goes on where it stopped.",
        "python tools/reproduce.py pmf --seeds 0 1",
    )
    choices = ["biflow", "biflow-open-points", "biflow-toy", "pmf", "pmf-toy", "drifting", "drift-toy"]
    parser.add_argument("what", choices=choices)
    parser.add_argument("--out", type=Path, help="folder (default: work_dirs/reproduce/WHAT; open points: biflow)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--processes", type=int, help="training runs at a time, one thread each (default: one per core)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace tables and pictures that others wrote")
    arguments = parser.parse_args()
    _check_numbers(parser, arguments.seeds, arguments.processes)
    overwrite = arguments.overwrite
    folder = arguments.what.removesuffix("-open-points").replace("-", "_")
    out = arguments.out or Path("work_dirs/reproduce") / folder

    from genflow.reproduction import biflow as reproduce_biflow
    from genflow.reproduction import drifting as reproduce_drifting
    from genflow.reproduction import pmf as reproduce_pmf
    from genflow.reproduction.ablation import default_processes

    processes = arguments.processes or default_processes()
    plans = {
        "biflow": reproduce_biflow.PAPER_ROWS,
        "biflow-open-points": reproduce_biflow.OPEN_POINTS,
        "pmf": reproduce_pmf.PAPER_ROWS,
        "drifting": reproduce_drifting.PAPER_ROWS,
    }
    if arguments.what in plans:
        _ablate(plans[arguments.what], out, arguments.seeds, processes, overwrite)
    if arguments.what in ("pmf", "pmf-toy"):
        _pmf_toy(out / "toy" if arguments.what == "pmf" else out, processes, overwrite)
    if arguments.what == "biflow-toy":
        _biflow_toy(out, overwrite)
    if arguments.what == "drift-toy":
        _drift_toy(out, processes, overwrite)


def _check_numbers(parser: Parser, seeds: list[int], processes: int | None) -> None:
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        parser.error(f"--seeds: found {' '.join(map(str, seeds))}, expected different numbers from 0 to 2^63 - 1")
    if processes is not None and processes < 1:
        parser.error(f"--processes: found {processes}, expected at least 1")


def _ablate(plan: "Ablation", out: Path, seeds: list[int], processes: int, overwrite: bool) -> None:
    from genflow.reproduction import ablation
    from genflow.reproduction.ablation_figure import draw_ablation, sample_strip
    from genflow.reproduction.results import ResultFiles
    from genflow.weights import write_text

    files = ResultFiles(out, [f"{plan.name}.{ending}" for ending in ("json", "md", "png")], overwrite)
    _train(ablation.jobs_of(plan, RECIPES, out, seeds, threads=1), processes)
    with progress_bar("measuring") as bar:
        task = bar.add_task("", total=len(plan.rows))
        results = ablation.measure(plan, out, seeds, lambda done, total: bar.update(task, completed=done))
    write_text(out / f"{plan.name}.json", json.dumps(results, indent=2) + "\n")
    table = ablation.format_table(plan, results, "../recipes")
    write_text(out / f"{plan.name}.md", table)
    first = out / f"seed_{seeds[0]}"
    strips = [sample_strip(first / row.run, row.guidance, classes=10) for row in plan.rows]
    draw_ablation(results, strips, out / f"{plan.name}.png")
    files.record()
    print(f"{table}\n{out / plan.name}.md, .json and .png")


def _train(jobs: "list[Job]", processes: int) -> None:
    from genflow.reproduction.ablation import train_jobs

    with progress_bar(f"training {len(jobs)} runs") as bar:
        task = bar.add_task("", total=len(jobs))
        train_jobs(jobs, processes, lambda done, total: bar.update(task, completed=done))


def _pmf_toy(out: Path, processes: int, overwrite: bool) -> None:
    from genflow.reproduction import pmf as reproduce_pmf
    from genflow.reproduction.results import ResultFiles
    from genflow.weights import write_text

    files = ResultFiles(out, ["pmf_toy.json", "pmf_toy.png"], overwrite)
    _train(reproduce_pmf.toy_jobs(RECIPES, out), processes)
    distances = reproduce_pmf.toy_distances(out)
    write_text(out / "pmf_toy.json", json.dumps(distances, indent=2) + "\n")
    reproduce_pmf.draw_toy(out, out / "pmf_toy.png", distances)
    files.record()
    print(f"{out / 'pmf_toy'}.png and .json")


def _drift_toy(out: Path, processes: int, overwrite: bool) -> None:
    from genflow.reproduction import drift_toy, drift_toy_fields
    from genflow.reproduction.results import ResultFiles
    from genflow.weights import write_text

    films = [f"drift_toy_{start}.{ending}" for start in drift_toy.STARTS for ending in ("png", "gif")]
    names = ["drift_toy.json", "drift_toy_fields.json", "drift_toy_fields.png", *films]
    files = ResultFiles(out, names, overwrite)
    _train([*drift_toy.toy_jobs(RECIPES, out), *drift_toy_fields.field_jobs(RECIPES, out)], processes)
    results, fields = drift_toy.toy_figures(out), drift_toy_fields.field_figures(out)
    write_text(out / "drift_toy.json", json.dumps(results, indent=2) + "\n")
    write_text(out / "drift_toy_fields.json", json.dumps(fields, indent=2) + "\n")
    drift_toy_fields.draw_fields(out, out / "drift_toy_fields.png")
    for start, description in drift_toy.STARTS.items():
        drift_toy.draw_strip(out / start, f"start: {description}", out / f"drift_toy_{start}.png")
        drift_toy.draw_film(out / start, f"start: {description}", out / f"drift_toy_{start}.gif")
    files.record()
    print(f"{drift_toy.format_toy(results)}\n{drift_toy_fields.format_fields(fields)}")
    print(f"{out / 'drift_toy'}.json, {out / 'drift_toy_fields'}.json, {out / 'drift_toy'}_*.png and .gif")


def _biflow_toy(out: Path, overwrite: bool) -> None:
    from genflow.engine.signals import TrainingStopped
    from genflow.engine.train import TrainOptions, train
    from genflow.reproduction.biflow_toy import draw_toy_figure
    from genflow.reproduction.results import ResultFiles
    from genflow.runs.folder import RunFolder

    files = ResultFiles(out, ["biflow_toy.png"], overwrite)
    run = out / "biflow_toy"
    if not RunFolder(run).is_complete:
        try:
            train(RECIPES / "biflow_toy.yaml", options=TrainOptions(run, resume="auto"))
        except TrainingStopped as error:
            raise TrainingStopped(error.number, f"{error}; the same command goes on") from None
    draw_toy_figure(run, out / "biflow_toy.png")
    files.record()
    print(out / "biflow_toy.png")
