"""Evaluate a run and lay the figures out beside those of real data."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.table import Table

from genflow.errors import UserError
from genflow.runs.folder import Run


def evaluate_run(
    run: Run,
    seed: int = 0,
    guidance: float | None = None,
    average: str | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    *,
    steps: int | None = None,
    interval: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Measure a finished run as its recipe's ``evaluation`` section says and record it in metrics.json.

    Args:
        run: the run.
        seed, guidance, progress: as in :meth:`genflow.evaluation.base.Evaluator.evaluate`.
        average: which average of the weights, by name; None for the exported one.
        device: where to generate.
        steps, interval: as in :meth:`genflow.generators.base.Generator.set_sampling`.

    Returns:
        ``{"model": {figure: value}, "real": {figure: value}, "nfe", "seed", "guidance", ...}``, and ``interval`` if one
        was asked for.

    Raises:
        UserError: the run's recipe has no ``evaluation`` section, or its weights cannot be used.
    """
    evaluator = run.graph.section("evaluation")
    if evaluator is None:
        source = run.graph.source
        raise UserError(f"{source}: evaluation: missing; name an evaluator, e.g. {{type: DigitsEvaluator}}")
    if average == run.exported_average:
        average = None
    generator = run.generator(device, average)
    generator.set_sampling(steps, interval)
    report = {
        "model": evaluator.evaluate(generator, seed, guidance, device, progress),
        "real": evaluator.reference(generator.num_classes),
        "nfe": generator.nfe,
        "seed": seed,
        "guidance": generator.default_guidance if guidance is None else guidance,
        "average": average,
        "samples": evaluator.num_samples,
    }
    key = "evaluation"
    if seed or any(value is not None for value in (guidance, average, steps, interval)):
        key += f", seed {seed}, guidance {report['guidance']:g}, average {average}"
    if steps is not None:
        key += f", {steps} steps"
    if interval is not None:
        report["interval"] = list(interval)
        key += ", interval {:g} to {:g}".format(*interval)
    run.write_metrics({key: report})
    return report


def report_table(report: dict[str, Any]) -> Table:
    """The figures of model and real data as a table."""
    table = Table(title=f"{report['samples']} samples, guidance {report['guidance']:g}, NFE {report['nfe']}")
    table.add_column("figure")
    table.add_column("model", justify="right")
    table.add_column("real data", justify="right")
    for name, value in report["model"].items():
        real = report["real"].get(name)
        table.add_row(name, f"{value:.3f}", "" if real is None else f"{real:.3f}")
    return table


def format_report(report: dict[str, Any]) -> str:
    """The figures in lines of text, for a log."""
    return "\n".join(
        f"{name}: {value:.3f} (real data: {report['real'].get(name, float('nan')):.3f})"
        for name, value in report["model"].items()
    )
