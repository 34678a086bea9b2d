"""Evaluate a run and lay the figures out beside those of real data."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info
from rich.table import Table

from genflow.config.recipe import dump_yaml
from genflow.evaluation.base import Evaluator, Share
from genflow.processes import agreed
from genflow.runs.folder import Run
from genflow.weights import file_digest

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Setting:
    """How samples are made that are measured.

    Args:
        seed: of their noise.
        guidance: as in :meth:`genflow.evaluation.base.Evaluator.evaluate`; None for the generator's default.
        average: which average of the weights, by name; None for the exported one.
        steps, interval: as in :meth:`genflow.generators.base.Generator.set_sampling`.
    """

    seed: int = 0
    guidance: float | None = None
    average: str | None = None
    steps: int | None = None
    interval: tuple[float, float] | None = None

    def key(self, guidance: float) -> str:
        """Where metrics.json keeps the figures; ``guidance`` is the scale in the end."""
        key = "evaluation"
        if self.seed or any(value is not None for value in (self.guidance, self.average, self.steps, self.interval)):
            key += f", seed {self.seed}, guidance {guidance:g}, average {self.average}"
        if self.steps is not None:
            key += f", {self.steps} steps"
        if self.interval is not None:
            key += ", interval {:g} to {:g}".format(*self.interval)
        return key


def evaluate_run(
    run: Run,
    seed: int = 0,
    guidance: float | None = None,
    average: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    steps: int | None = None,
    interval: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Measure a finished run as its recipe's ``evaluation`` section says and record it in metrics.json.

    This process does all of it, whether it is one of several or not.

    Args:
        run: the run.
        seed, guidance, average, steps, interval: as in :class:`Setting`.
        device: where to generate.
        progress: as in :meth:`genflow.evaluation.base.Evaluator.evaluate`.

    Returns:
        ``{"model": {figure: value}, "real": {figure: value}, "nfe", "seed", "guidance", ...}``, and ``interval`` if one
        was asked for.

    Raises:
        UserError: the run's recipe has no ``evaluation`` section, its weights cannot be used, or as
            :meth:`~genflow.runs.folder.Run.check_writable`.
    """
    setting = Setting(seed, guidance, average, steps, None if interval is None else (interval[0], interval[1]))
    return measure(run, run.evaluator(), setting, device, progress)


def measure(
    run: Run,
    evaluator: Evaluator,
    setting: Setting,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    shared: bool = False,
    bootstrap: int = 0,
) -> dict[str, Any]:
    """Measure a run at one setting, and record it.

    Args:
        run: the run.
        evaluator: its own, see :meth:`~genflow.runs.folder.Run.evaluator`; it keeps what it knows of real data.
        setting: how samples are made.
        device, progress: as in :func:`evaluate_run`.
        shared: whether all processes of the group call this, and share the work.
        bootstrap: resamplings for error bars, which are ``error`` in the report.

    Raises:
        UserError: as :func:`evaluate_run`.
    """
    run.check_writable()
    average = None if setting.average == run.exported_average else setting.average
    generator = agreed(lambda: run.generator(device, average)) if shared else run.generator(device, average)
    generator.set_sampling(setting.steps, setting.interval)
    rank, size = get_dist_info() if shared else (0, 1)
    partial = work_file(run, setting, f"process_{rank}_of_{size}.pt")
    share = Share(rank, size, partial)
    figures = evaluator.evaluate(generator, setting.seed, setting.guidance, device, progress, share)
    report = {
        "model": figures,
        "real": evaluator.reference(generator.num_classes),
        "nfe": generator.nfe,
        "seed": setting.seed,
        "guidance": generator.default_guidance if setting.guidance is None else setting.guidance,
        "average": average,
        "samples": evaluator.num_samples,
        **evaluator.facts(),
    }
    if bootstrap:
        report["error"] = evaluator.bootstrap(bootstrap, setting.seed)
    if setting.steps is not None:
        report["steps"] = setting.steps
    if setting.interval is not None:
        report["interval"] = list(setting.interval)
    partial.unlink(missing_ok=True)
    if rank == 0:
        recorded = Setting(setting.seed, setting.guidance, average, setting.steps, setting.interval)
        key = ", ".join((recorded.key(report["guidance"]), *run.overrides))
        run.write_metrics({key: report})
    return report


def work_file(run: Run, setting: Setting, ending: str) -> Path:
    """Where an evaluation keeps what it has done; the name says all that its figures depend on."""
    settings = [dump_yaml(run.graph.plain), vars(setting), file_digest(run.weights_file(setting.average))]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return run.path / ".evaluation" / f"{digest}.{ending}"


def report_table(report: dict[str, Any]) -> Table:
    """The figures of model and real data as a table."""
    table = Table(title=f"{report['samples']} samples, guidance {report['guidance']:g}, NFE {report['nfe']}")
    table.add_column("figure")
    table.add_column("model", justify="right")
    table.add_column("real data", justify="right")
    for name, value in report["model"].items():
        real, error = report["real"].get(name), report.get("error", {}).get(name)
        spread = "" if error is None else f" +- {error:.3f}"
        table.add_row(name, f"{value:.3f}{spread}", "" if real is None else f"{real:.3f}")
    return table


def format_report(report: dict[str, Any]) -> str:
    """The figures in lines of text, for a log."""
    return "\n".join(
        f"{name}: {value:.3f} (real data: {report['real'].get(name, float('nan')):.3f})"
        for name, value in report["model"].items()
    )
