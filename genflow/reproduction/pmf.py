"""pMF's ablation on digits and its toy: what the paper compares on ImageNet and on a Swiss roll (docs/pmf.md)."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from genflow.data.toy2d import Toy2D, projection
from genflow.evaluation.metrics import energy_distance
from genflow.reproduction.ablation import Ablation, Job, Row
from genflow.runs.folder import open_run
from genflow.weights import write_atomically

_BASE = "pmf_digits"
#: Scale 1 is no guidance; so all rows are compared without.
_row = partial(Row, guidance=1.0)
_UPDATES = 700

PAPER_ROWS = Ablation(
    name="table",
    rows=(
        _row("prediction", "image x", _BASE, paper=9.56),
        _row("prediction", "average velocity u", f"{_BASE}_u_prediction", paper=164.89),
        _row("preconditioner of x", "none", _BASE, paper=3.53),
        _row("preconditioner of x", "linear", f"{_BASE}_linear", paper=34.61),
        _row("preconditioner of x", "EDM", f"{_BASE}_edm", paper=14.43),
        _row("preconditioner of x", "sCM", f"{_BASE}_scm", paper=13.81),
        _row("times", "0 <= r <= t", _BASE, paper=3.53),
        _row("times", "only r = t", f"{_BASE}_only_r_equals_t", paper=194.53),
        _row("times", "only r = 0", f"{_BASE}_only_r_zero", paper=389.28),
        _row("times", "both lines", f"{_BASE}_both_lines", paper=106.59),
        _row("optimizer", "Muon", _BASE, paper=9.56),
        _row("optimizer", "Adam", f"{_BASE}_adam", paper=18.88),
        _row("interval of guidance", "random", _BASE),
        _row("interval of guidance", "always [0, 1]", f"{_BASE}_no_interval"),
    ),
    shared=(f"train_cfg.max_iters={_UPDATES}",),
)

DIMENSIONS = (2, 8, 16, 512)
PREDICTIONS = {"x": "pmf_toy", "u": "pmf_toy_u_prediction"}


def toy_jobs(recipes: Path, out: Path, seed: int = 0) -> list[Job]:
    """The runs of the toy figure, one for each prediction and number of dimensions."""
    return [
        Job(recipes / f"{recipe}.yaml", _toy_run(out, name, dimensions), seed, _in_dimensions(dimensions), threads=1)
        for name, recipe in PREDICTIONS.items()
        for dimensions in DIMENSIONS
    ]


def _toy_run(out: Path, prediction: str, dimensions: int) -> Path:
    return out / f"{prediction}_{dimensions}"


def _in_dimensions(dimensions: int) -> tuple[str, ...]:
    return (
        f"train_dataloader.dataset.dimensions={dimensions}",
        f"model.backbone.channels={dimensions}",
        f"model.codec.channels={dimensions}",
    )


def toy_distances(out: Path, count: int = 2000) -> dict[str, dict[int, float]]:
    """How far the samples of every toy run are from the data, by prediction and number of dimensions.

    It is the energy distance of the samples, projected into the plane, and as many points of the data set; to it comes
    the mean distance of the samples from the plane, which the data never leave.
    """
    data = _points(count)
    return {
        name: {
            dimensions: energy_distance(plane, data) + off
            for dimensions in DIMENSIONS
            for plane, off in [_samples(_toy_run(out, name, dimensions), dimensions, count)]
        }
        for name in PREDICTIONS
    }


def draw_toy(out: Path, path: Path, distances: dict[str, dict[int, float]], count: int = 3000) -> None:
    """Write a PNG of 2 x 4 panels: samples in the plane over the data, x-prediction above u-prediction."""
    from matplotlib.figure import Figure

    data = _points(count)
    figure = Figure(figsize=(11, 5.8), dpi=110, layout="constrained")
    panels = figure.subplots(len(PREDICTIONS), len(DIMENSIONS))
    for line, name in zip(panels, PREDICTIONS, strict=True):
        for axes, dimensions in zip(line, DIMENSIONS, strict=True):
            plane, _ = _samples(_toy_run(out, name, dimensions), dimensions, count)
            axes.scatter(*data.unbind(1), s=1, c="0.8", linewidths=0)
            axes.scatter(*plane.unbind(1), s=1.5, c="tab:blue" if name == "x" else "tab:red", linewidths=0)
            axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
            axes.set_title(f"D = {dimensions}, distance {distances[name][dimensions]:.3f}", fontsize=10)
        line[0].set_ylabel(f"{name}-prediction")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _points(count: int) -> Tensor:
    return Toy2D("swiss_roll").batch(torch.arange(count), None)["images"].flatten(1)


def _samples(run: Path, dimensions: int, count: int) -> tuple[Tensor, float]:
    """One-pass samples in the plane (N, 2), and their mean distance from it."""
    generator = open_run(run).generator()
    samples = generator.sample(torch.zeros(count, dtype=torch.int64), seed=1, decode=False).flatten(1)
    basis = projection(dimensions)
    plane = samples @ basis
    return plane, (samples - plane @ basis.T).norm(dim=1).mean().item()
