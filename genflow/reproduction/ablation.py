"""Train and measure the rows of an ablation, several seeds each, and lay them out as a table and a figure."""

import contextlib
import multiprocessing
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genflow.errors import UserError

EXACT_INVERSE = "exact inverse"


@dataclass(frozen=True)
class Row:
    """One line of an ablation.

    Args:
        block: the question that it belongs to.
        label: what is special about it.
        recipe: name of its recipe in the folder of recipes.
        overrides: entries that differ from the recipe, as ``--cfg-options`` takes them.
        teacher: name of the run that it learns from, one of the ablation's teachers; None where there is none.
        guidance: scale that it is sampled with.
        paper: the paper's figure for the same row; None where there is none.
    """

    block: str
    label: str
    recipe: str
    overrides: tuple[str, ...] = ()
    teacher: str | None = None
    guidance: float = 0.0
    paper: float | None = None

    @property
    def run(self) -> str:
        """The folder of its run; rows that differ in the guidance alone share one."""
        if self.label == EXACT_INVERSE:
            return self.teacher
        parts = [self.recipe, *(item.removeprefix("model.") for item in self.overrides), self.teacher]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Ablation:
    """Rows with what they need.

    Args:
        name: of the files that hold the results.
        rows: the lines of the table.
        shared: overrides of every row, such as a shorter schedule.
        teachers: what rows learn from (a flow, an encoder) by name: recipe and overrides.
        teacher_updates: updates of every teacher; None for as many as its recipe says.
        prerequisite: the name of a teacher in the rows' recipes.
        figures: names of the figures of merit, in the order of the table.
    """

    name: str
    rows: Sequence[Row]
    shared: tuple[str, ...]
    teachers: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    teacher_updates: int | None = None
    prerequisite: str = "teacher"

    def teacher_options(self, name: str) -> tuple[str, ...]:
        """The overrides of a teacher's recipe."""
        overrides = self.teachers[name][1]
        updates = self.teacher_updates
        return overrides if updates is None else (*overrides, f"train_cfg.max_iters={updates}")

    figures: tuple[str, ...] = ("fd", "accuracy", "precision", "recall")


@dataclass(frozen=True)
class Job:
    """One training run in a process of its own."""

    recipe: Path
    work_dir: Path
    seed: int
    overrides: tuple[str, ...]
    threads: int
    needs: tuple[Path, ...] = ()


def jobs_of(ablation: Ablation, recipes: Path, out: Path, seeds: Sequence[int], threads: int) -> list[Job]:
    """All runs, teachers first, every seed with teachers of its own."""
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        folder = out / f"seed_{seed}"
        for name in dict.fromkeys(row.teacher for row in ablation.rows if row.teacher):
            recipe, options = ablation.teachers[name][0], ablation.teacher_options(name)
            jobs[folder / name] = Job(recipes / f"{recipe}.yaml", folder / name, seed, options, threads)
    for seed in seeds:
        folder = out / f"seed_{seed}"
        for row in ablation.rows:
            if row.label == EXACT_INVERSE:
                continue
            options, needs = (*ablation.shared, *row.overrides), ()
            if row.teacher:
                needs = (folder / row.teacher,)
                entry = f"prerequisites.{ablation.prerequisite}"
                own = (f"{entry}.recipe.{item}" for item in ablation.teacher_options(row.teacher))
                options += (f"{entry}.run={folder / row.teacher}", *own)
            work_dir = folder / row.run
            jobs[work_dir] = Job(recipes / f"{row.recipe}.yaml", work_dir, seed, options, threads, needs)
    return list(jobs.values())


def train_jobs(jobs: Sequence[Job], processes: int, progress: Callable[[int, int], None]) -> None:
    """Train what is not trained yet, ``processes`` runs at a time; interrupted runs go on where they stopped.

    Raises:
        UserError: a finished run in the way was trained with another recipe.
        TrainingStopped: a signal came, to this process or to one that trains; all have ended after their update.
    """
    _check_finished(jobs)
    done = 0
    first = [job for job in jobs if not job.needs]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genflow.engine.train", "genflow.engine.hooks", "genflow.engine.runner"])
    # Of a group of its own each, which Ctrl-C at the terminal does not reach: the signal is passed on below, once.
    with ProcessPoolExecutor(processes, mp_context=context, initializer=os.setpgrp) as pool, _stopping():
        try:
            for wave in (first, [job for job in jobs if job.needs]):
                for future in as_completed([pool.submit(_train, job) for job in wave]):
                    future.result()
                    done += 1
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Turn the first of the signals that end a training into TrainingStopped."""
    from genflow.engine.signals import SIGNALS, TrainingStopped

    def stop(number: int, _: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        raise TrainingStopped(number, f"stopped by {name}; the runs keep what they have, and the same command goes on")

    before = {each: signal.signal(each, stop) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _check_finished(jobs: Sequence[Job]) -> None:
    from genflow.config.recipe import load_recipe
    from genflow.runs.folder import RunFolder

    for job in jobs:
        run = RunFolder(job.work_dir)
        if run.is_complete:
            found = load_recipe(run.recipe_file)
            expected = {**load_recipe(job.recipe, job.overrides), "seed": job.seed}
            if found != expected:
                raise UserError(f"{job.work_dir}: was trained with another recipe than {job.recipe}; move it away")


#: What ended the training at hand of a process of the pool, which has its next job already.
_ended: list[Exception] = []


def _train(job: Job) -> None:
    import torch

    from genflow.engine.signals import TrainingStopped
    from genflow.engine.train import TrainOptions, train
    from genflow.runs.folder import RunFolder

    if _ended:
        raise _ended[0]
    if RunFolder(job.work_dir).is_complete:
        return
    torch.set_num_threads(job.threads)
    job.work_dir.mkdir(parents=True, exist_ok=True)
    with (
        open(job.work_dir / "console.log", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            train(job.recipe, job.overrides, job.seed, TrainOptions(job.work_dir, resume="auto"))
        except TrainingStopped as error:
            _ended.append(error)
            raise


def measure(
    ablation: Ablation, out: Path, seeds: Sequence[int], progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """The figures of every row and seed: the row's fields, ``nfe`` and ``figures``, a list over seeds for each name."""
    results = []
    for done, row in enumerate(ablation.rows):
        progress(done, len(ablation.rows))
        reports = [_evaluate(out / f"seed_{seed}" / row.run, row.guidance) for seed in seeds]
        figures = {name: [report["model"][name] for report in reports] for name in ablation.figures}
        results.append({**asdict(row), "nfe": reports[0]["nfe"], "figures": figures})
    return results


def _evaluate(run: Path, guidance: float) -> dict[str, Any]:
    """The report of a run, measured once and kept in its metrics.json."""
    from genflow.runs.evaluate import evaluate_run
    from genflow.runs.folder import open_run

    opened = open_run(run)
    for report in opened.metrics.values():
        if isinstance(report, dict) and report.get("guidance") == guidance and report.get("seed") == 0:
            return report
    return evaluate_run(opened, guidance=guidance)


def format_table(ablation: Ablation, results: Sequence[dict[str, Any]], recipes_link: str) -> str:
    """A Markdown table; figures are means over seeds, in brackets lowest and highest."""
    names = [*ablation.figures]
    header = ["", "", "w", "evaluations", *names, "paper, FID"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    block = None
    for result in results:
        cells = [_spread(result["figures"][name]) for name in names]
        options = "".join(f", `{item}`" for item in result["overrides"])
        lines.append(
            "| "
            + " | ".join(
                [
                    result["block"] if result["block"] != block else "",
                    f"[{result['label']}]({recipes_link}/{result['recipe']}.yaml){options}",
                    f"{result['guidance']:g}",
                    str(result["nfe"]),
                    *cells,
                    "" if result["paper"] is None else f"{result['paper']:.2f}",
                ]
            )
            + " |"
        )
        block = result["block"]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def default_processes() -> int:
    """One training process per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
