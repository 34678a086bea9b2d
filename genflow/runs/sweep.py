"""Measure a run at many settings: a table, a picture, the best."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from genflow.errors import UserError, nearest, shown
from genflow.processes import decided
from genflow.runs.evaluate import Setting, measure, work_file
from genflow.runs.folder import Run
from genflow.weights import write_atomically, write_text

#: What can be swept, and settings of one call.
_NAMES = ("guidance", "average", "interval", "steps", "seed")
_MOST = 1000
_ALL = "all"
#: Figures of which less is better, by the beginnings of their names.
_LESS = ("fd", "kernel_distance", "fdr")

Report = dict[str, Any]


def settings_of(sweep: Sequence[str], base: Setting, averages: Sequence[str]) -> list[Setting]:
    """The settings that ``NAME=VALUES`` mean, every one with every other.

    Numbers are ``1:4:0.5`` (first, last, step) or ``1,2.5,4``; averages are names or ``all``; intervals are
    ``0.1:0.7,0:1`` (first and last time of each).

    Args:
        sweep: the words.
        base: what they leave alone.
        averages: of the run, the exported one first.

    Raises:
        UserError: an unknown name, values that mean nothing, or more than a thousand settings.
    """
    values: dict[str, list[Any]] = {}
    for word in sweep:
        name, equals, text = word.partition("=")
        if not equals or name not in _NAMES:
            raise UserError(
                f"--sweep: found {word!r}, expected NAME=VALUES of {', '.join(_NAMES)}{nearest(name, _NAMES)}"
            )
        if name in values:
            raise UserError(f"--sweep: found {name} twice")
        values[name] = list(_values(name, text, averages))
    count = math.prod(len(entries) for entries in values.values())
    if count > _MOST:
        raise UserError(f"--sweep: found {count} settings, expected at most {_MOST}")
    return [
        Setting(**{**vars(base), **dict(zip(values, combination, strict=True))})
        for combination in itertools.product(*values.values())
    ]


def _values(name: str, text: str, averages: Sequence[str]) -> Iterator[Any]:
    wrong = UserError(f"--sweep: {name}: found {shown(text)}, expected {_FORMS[name]}")
    if name == "average":
        for word in text.split(","):
            if word not in (_ALL, *averages):
                raise UserError(
                    f"--sweep: average: found {word!r}, there is {', '.join(averages)}{nearest(word, averages)}"
                )
            yield from averages if word == _ALL else [word]
        return
    for word in text.split(","):
        numbers = [_number(part, wrong) for part in word.split(":")]
        if name == "interval":
            if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
                raise wrong
            yield tuple(numbers)
        elif len(numbers) == 3:
            first, last, step = numbers
            if step <= 0 or last < first or (last - first) / step > _MOST:
                raise wrong
            for index in range(math.floor((last - first) / step + 1e-9) + 1):
                yield _whole(name, round(first + index * step, 10), wrong)
        elif len(numbers) == 1:
            yield _whole(name, numbers[0], wrong)
        else:
            raise wrong


_FORMS = {
    "guidance": "numbers as 1:4:0.5 (first, last, step) or 1,2.5,4",
    "average": "names, or all",
    "interval": "two times each, as 0.1:0.7,0:1",
    "steps": "whole numbers as 1,2,4",
    "seed": "whole numbers as 0,1,2",
}


def _number(text: str, wrong: UserError) -> float:
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip()) or not math.isfinite(float(text)):
        raise wrong
    return float(text)


def _whole(name: str, value: float, wrong: UserError) -> float | int:
    if name == "guidance":
        return value
    if value != int(value) or value < (1 if name == "steps" else 0):
        raise wrong
    return int(value)


def sweep_run(
    run: Run,
    settings: Sequence[Setting],
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    shared: bool = False,
    bootstrap: int = 0,
) -> list[Report]:
    """Measure a run at every setting, with real data looked at once; a killed sweep goes on where it stopped.

    Args:
        run: the run.
        settings: of :func:`settings_of`.
        device, shared, bootstrap: as in :func:`~genflow.runs.evaluate.measure`.
        progress: called with (images so far, images) of all settings.

    Raises:
        UserError: as :func:`~genflow.runs.evaluate.measure`, or there are no error bars.
    """
    evaluator = run.evaluator()
    if bootstrap and not evaluator.has_error_bars:
        raise UserError(f"--bootstrap: a {type(evaluator).__name__} has no error bars")
    reports: list[Report] = []
    kept = [work_file(run, setting, f"done_{bootstrap}.json") for setting in settings]
    seen = 0  # images of the settings so far, the real ones included
    for number, (setting, file) in enumerate(zip(settings, kept, strict=True), start=1):
        left = (len(settings) - number) * evaluator.num_samples

        def told(done: int, own: int, before: int = seen, after: int = left) -> None:
            nonlocal seen
            seen = before + own
            if progress is not None:
                progress(before + done, before + own + after)

        report = decided(partial(_finished, file))
        if report is None:
            report = measure(run, evaluator, setting, device, told, shared, bootstrap)
            decided(partial(write_text, file, json.dumps(report)))
        reports.append(report)

    def remove() -> None:
        for file in kept:
            file.unlink(missing_ok=True)

    decided(remove)
    return reports


def _finished(file: Path) -> Report | None:
    """The report of a setting that a killed sweep measured."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:  # damaged: it is measured again
        return None


def best_of(reports: Sequence[Report]) -> tuple[str, Report]:
    """The first figure's name, and the report in which it is best."""
    figure = next(iter(reports[0]["model"]))
    sign = 1 if figure.startswith(_LESS) else -1
    return figure, min(reports, key=lambda report: sign * report["model"][figure])


def sweep_table(settings: Sequence[Setting], reports: Sequence[Report]) -> Table:
    """A row for each setting."""
    swept = [name for name in _NAMES if len({str(getattr(setting, name)) for setting in settings}) > 1] or ["guidance"]
    table = Table(title=f"{reports[0]['samples']} samples each, NFE {reports[0]['nfe']}")
    for name in (*swept, *reports[0]["model"]):
        table.add_column(name, justify="right")
    for setting, report in zip(settings, reports, strict=True):
        values = [report["guidance"] if name == "guidance" else getattr(setting, name) for name in swept]
        table.add_row(*(_text(value) for value in values), *(f"{value:.3f}" for value in report["model"].values()))
    return table


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, (int, float)) else str(value or "exported")


def draw_sweep(settings: Sequence[Setting], reports: Sequence[Report], path: Path) -> None:
    """Draw the first figure, and Inception Score or the second one, over guidance, a line for each other setting."""
    from matplotlib.figure import Figure  # imported here since few calls need it

    names = list(reports[0]["model"])
    second = next((name for name in names if name.startswith("inception_score")), names[min(1, len(names) - 1)])
    lines: dict[str, list[Report]] = {}
    for setting, report in zip(settings, reports, strict=True):
        others = [
            f"{name} {_text(getattr(setting, name))}" for name in _NAMES[1:] if getattr(setting, name) is not None
        ]
        lines.setdefault(", ".join(others), []).append(report)
    chosen = list(dict.fromkeys((names[0], second)))
    figure = Figure(figsize=(4.6 * len(chosen), 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        for label, line in lines.items():
            points = sorted((report["guidance"], report["model"][name]) for report in line)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set_xlabel("guidance scale")
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.3)
    if len(lines) > 1:
        figure.axes[0].legend(fontsize="small")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
