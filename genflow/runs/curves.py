"""What runs logged, over their updates, with their sample grids beside it: one picture of several runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genflow.config.recipe import parse_yaml
from genflow.errors import UserError, nearest
from genflow.runs.folder import RunFolder
from genflow.runs.scalars import read_line
from genflow.weights import write_atomically

#: Grids that are shown of a run: the first, the one in the middle and the last.
_GRIDS = 3
#: Share of a run's updates over which its smooth line is a mean.
_SMOOTH = 0.03
#: A factor that positive values have to span for a logarithmic axis, whose ticks say nothing about less.
_LOG_SPAN = 3.0
#: Largest by smallest value below which powers of ten alone are too few ticks.
_FEW_DECADES = 500.0
#: Inches: width and height of a panel, height of the legend, width of a grid; dots per inch; most columns of panels.
_PANEL, _LEGEND, _GRID_WIDTH, _DPI, _COLUMNS = (4.0, 2.4), 0.4, 1.75, 110, 4


@dataclass(frozen=True)
class Curves:
    """What a run has logged.

    Args:
        folder: the run folder.
        steps: (N,) updates, ascending.
        values: by name (N,) numbers, ``nan`` where an update has none; in the order of the file.
        held_out: names of distances that are measured and not trained on.
        grids: sample grids with their updates, oldest first.
    """

    folder: Path
    steps: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    held_out: frozenset[str]
    grids: list[tuple[int, Path]]


def read_curves(folder: RunFolder) -> Curves:
    """Read a run, finished or not.

    Where a run went back to a checkpoint and did updates again, the later ones count.

    Raises:
        UserError: the folder holds no ``scalars.jsonl``, or one without updates.
    """
    file = folder.scalars_file
    if not file.is_file():
        parent = folder.path.parent
        siblings = [path.parent.name for path in parent.glob("*/scalars.jsonl")]
        hint = "" if folder.path.is_dir() else nearest(folder.path.name, siblings)
        raise UserError(f"{file}: missing, so this is no run folder, or one that has not trained yet{hint}")
    kept: list[dict[str, Any]] = []
    for text in file.read_bytes().splitlines():
        line = read_line(text)
        if line is None:
            continue
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    if not kept:
        raise UserError(f"{file}: holds no update yet")
    names = dict.fromkeys(name for line in kept for name in line if name != "step")
    values = {name: np.array([_number(line.get(name)) for line in kept]) for name in names}
    steps = np.array([line["step"] for line in kept])
    pictures = sorted((folder.path / "samples").glob("step_*.png"))
    grids = [(int(digits), path) for path in pictures if (digits := path.stem.removeprefix("step_")).isdecimal()]
    return Curves(folder.path, steps, values, _held_out(folder), sorted(grids))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _held_out(folder: RunFolder) -> frozenset[str]:
    if not folder.recipe_file.is_file():
        return frozenset()
    recipe = parse_yaml(folder.recipe_file.read_text(encoding="utf-8"), str(folder.recipe_file))
    model = recipe.get("model") if isinstance(recipe, dict) else None
    held_out = model.get("held_out") if isinstance(model, dict) else None
    return frozenset(held_out if isinstance(held_out, dict) else ())


def panels_of(runs: Sequence[Curves]) -> list[str]:
    """What is drawn: the loss and the terms that all runs have, what a run holds out, and the gradient's norm."""
    shared = [name for name in runs[0].values if all(name in run.values for run in runs)]
    held_out = dict.fromkeys(name for run in runs for name in run.values if name in run.held_out)
    terms = [name for name in shared if name not in ("loss", "grad_norm", "lr") and name not in held_out]
    ends = [[name] if name in shared else [] for name in ("loss", "grad_norm")]
    return [*ends[0], *terms, *held_out, *ends[1]]


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Means over ``width`` neighbours, of those that are there: at the ends, and beside ``nan``, they are fewer."""
    there = np.isfinite(values)
    window = np.ones(min(width, len(values)))
    sums = np.convolve(np.where(there, values, 0.0), window, "same")
    counts = np.convolve(there.astype(float), window, "same")
    return np.where(there, sums / np.maximum(counts, 1.0), math.nan)


def chosen_grids(grids: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """The first, the middle and the last one; all where there are fewer."""
    places = sorted({0, (len(grids) - 1) // 2, len(grids) - 1}) if grids else []
    return [grids[place] for place in places]


def draw_curves(runs: Sequence[Curves], path: Path) -> None:
    """Write the picture: curves at the left, a row of sample grids for each run at the right.

    Args:
        runs: in the order in which they are drawn.
        path: a PNG.

    Raises:
        UserError: the runs have nothing in common that could be drawn.
    """
    import matplotlib as mpl  # imported here since few calls need it
    from matplotlib.figure import Figure

    names = panels_of(runs)
    if not names:
        raise UserError(f"{runs[0].folder} and the others log nothing under the same name")
    drawn = [
        _Drawn(run, label, f"C{place % 10}") for place, (run, label) in enumerate(zip(runs, _labels(runs), strict=True))
    ]
    with_grids = [entry for entry in drawn if entry.run.grids]
    strips = [_strip_height(entry.run) for entry in with_grids]
    columns = _columns(len(names), sum(strips))
    rows = -(-len(names) // columns)
    width, right = columns * _PANEL[0], _GRIDS * _GRID_WIDTH if strips else 0.0
    curves = rows * _PANEL[1] + _LEGEND
    height = max(curves, sum(strips))
    figure = Figure(figsize=(width + right, height), layout="constrained")
    sides = figure.subfigures(1, 2 if strips else 1, width_ratios=[width, right][: 1 + bool(strips)], squeeze=False)[0]
    with mpl.rc_context({"agg.path.chunksize": 20_000}):  # the renderer refuses longer lines
        left = _stacked(sides[0], [curves], height)[0]
        panels = left.subplots(rows, columns, squeeze=False).flatten()
        for axes, name in zip(panels, names, strict=False):
            _draw_panel(axes, name, drawn)
        for axes in panels[len(names) :]:
            axes.axis("off")
        lines = [panels[0].plot([], color=entry.colour, label=entry.label)[0] for entry in drawn]
        left.legend(handles=lines, loc="outside upper left", ncols=2 * columns, frameon=False, fontsize=9)
        for entry, part in zip(with_grids, _stacked(sides[-1], strips, height) if strips else (), strict=True):
            _draw_strip(part, entry)
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=_DPI))


@dataclass(frozen=True)
class _Drawn:
    run: Curves
    label: str
    colour: str


def _labels(runs: Sequence[Curves]) -> list[str]:
    """Names of the folders, with the folders that they lie in where some have the same."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _columns(panels: int, beside: float) -> int:
    """Columns of panels: as few as are not higher than what stands beside them, and no more than four."""
    fitting = (count for count in range(1, _COLUMNS) if -(-panels // count) * _PANEL[1] <= beside)
    return min(panels, next(fitting, _COLUMNS))


def _stacked(figure: Any, heights: Sequence[float], whole: float) -> list[Any]:
    """Parts of a figure one below the other, and nothing below them."""
    rest = whole - sum(heights)
    parts = figure.subfigures(len(heights) + 1, 1, height_ratios=[*heights, max(rest, 1e-3)], squeeze=False)
    return list(parts[: len(heights), 0])


def _draw_panel(axes: Any, name: str, drawn: Sequence[_Drawn]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = [entry for entry in drawn if name in entry.run.values]
    everything = np.concatenate([entry.run.values[name] for entry in shown])
    everything = everything[np.isfinite(everything)]
    for entry in shown:
        values = entry.run.values[name]
        smoothed = smooth(values, max(1, round(_SMOOTH * len(values))))
        axes.plot(entry.run.steps, values, color=entry.colour, alpha=0.22, linewidth=0.7, zorder=1)
        axes.plot(entry.run.steps, smoothed, color=entry.colour, linewidth=1.5, zorder=2)
    span = everything.max() / everything.min() if everything.size and everything.min() > 0 else 1.0
    if span > _LOG_SPAN:
        axes.set_yscale("log")
        if span < _FEW_DECADES:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    held_out = any(name in entry.run.held_out for entry in shown)
    axes.set_title(f"{name.replace('_', ' ')}{' (held out)' if held_out else ''}", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.set_xlabel("updates", fontsize=8)


def _strip_height(run: Curves) -> float:
    """Inches of a run's row of grids, with the lines of text above it."""
    from PIL import Image

    with Image.open(run.grids[-1][1]) as picture:
        return 0.55 + _GRID_WIDTH * picture.height / picture.width


def _draw_strip(part: Any, entry: _Drawn) -> None:
    from PIL import Image

    part.suptitle(entry.label, fontsize=9, color=entry.colour)
    places = part.subplots(1, _GRIDS)
    for axes in places:
        axes.axis("off")
    for axes, (step, path) in zip(places, chosen_grids(entry.run.grids), strict=False):
        with Image.open(path) as picture:
            axes.imshow(np.asarray(picture.convert("RGB")), interpolation="antialiased")
        axes.set_title(f"after {step}", fontsize=8)
