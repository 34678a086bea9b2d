"""Other fields on the toy of Drifting: runs from the same starts, shares and distances, and one strip of all."""

from pathlib import Path

from torch import Tensor

from genflow.reproduction import drift_toy
from genflow.reproduction.ablation import Job
from genflow.weights import write_atomically

_PLANE = "temperatures: [0.1], normalize_distances: false, normalize_forces: false"
#: Overrides of the recipes by field; all have the recipes' one temperature.
FIELDS: dict[str, tuple[str, ...]] = {
    "laplace": (),
    "gaussian": ("model.field.kernel=gaussian",),
    "sharp": ("model.field.kernel=sharp",),
    "sinkhorn": (f"model.field={{type: SinkhornField, {_PLANE}}}",),
    "annealed": ("model.field.annealing={factor: 4.0, updates: 300}",),
}
_STARTS = ("far", "collapsed")


def compared_starts() -> list[str]:
    """Those from which all fields are trained."""
    return [start for start in drift_toy.STARTS if start in _STARTS]


def field_run(out: Path, field: str, start: str) -> Path:
    """The folder of a run; that of the recipe as it is serves the toy itself too."""
    return out / "fields" / field / start if FIELDS[field] else out / start


def field_jobs(recipes: Path, out: Path, seed: int = 0) -> list[Job]:
    """The runs that the toy itself does not have, which keep samples on their way."""
    return [
        drift_toy.toy_job(recipes, start, field_run(out, field, start), seed, overrides)
        for field, overrides in FIELDS.items()
        for start in compared_starts()
        if overrides
    ]


def field_figures(out: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """:func:`~genflow.reproduction.drift_toy.figures` of the shown samples: ``{field: {start: {updates: ...}}}``."""
    return {
        field: {
            start: {
                str(step): drift_toy.figures(value)
                for step, value in drift_toy.shown(drift_toy.read_points(field_run(out, field, start))).items()
            }
            for start in compared_starts()
        }
        for field in FIELDS
    }


def format_fields(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """What :func:`field_figures` returned as a Markdown table: the last samples, and how far earlier ones are."""
    steps = [*next(iter(next(iter(results.values())).values()))]
    early = [f"energy distance after {step}" for step in steps[1:-1]]
    titles = ("field", "start", "near the left mode", "near the right mode", "energy distance", *early)
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for field, starts in results.items():
        for start, rows in starts.items():
            last = rows[steps[-1]]
            cells = [field, start, f"{last['left']:.3f}", f"{last['right']:.3f}"]
            cells += [f"{rows[step]['energy_distance']:.4f}" for step in (steps[-1], *steps[1:-1])]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_fields(out: Path, path: Path) -> None:
    """Write a PNG: a row per field, samples after the shown updates over the target's points, from the last start."""
    from matplotlib.figure import Figure

    start = compared_starts()[-1]
    rows: dict[str, dict[int, Tensor]] = {
        field: drift_toy.shown(drift_toy.read_points(field_run(out, field, start))) for field in FIELDS
    }
    columns = len(rows["laplace"])
    window = drift_toy.window_of([value for points in rows.values() for value in points.values()])
    size = (2.3 * columns + 0.4, 2.3 * drift_toy.height_of(window) * len(rows) + 0.8)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, (field, points) in zip(panels, rows.items(), strict=True):
        for axes, (step, value) in zip(line, points.items(), strict=True):
            drift_toy.scatter(axes, value, window)
            if field == next(iter(rows)):
                axes.set_title(f"{step} updates", fontsize=10)
        line[0].set_ylabel(field, fontsize=10)
    figure.suptitle(f"start: {drift_toy.STARTS[start]}", fontsize=11)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
