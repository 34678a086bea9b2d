"""The picture of a flow's trajectory in the plane and of the reverse model's hidden states beside it."""

import colorsys
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from genflow.condition import Condition
from genflow.draws import Draws
from genflow.engine.checkpoint import find_checkpoints
from genflow.errors import UserError
from genflow.inference.write_images import POINT_SHAPE
from genflow.methods.biflow import BiFlow
from genflow.runs.folder import Run, open_run
from genflow.weights import read_checkpoint, write_atomically


def draw_toy_figure(run_dir: Path, path: Path, count: int = 3000, seed: int = 0) -> None:
    """Draw two rows of panels, one column per state of the trajectory, as a PNG.

    The upper row, from left to right: data, then the states x^0 (data with noise) to x^B of the flow. The lower
    row, from right to left: noise that the flow has never seen, the hidden states of the reverse model through
    their projections, in the scale of the states they face, and the samples. The colour of a point is that of the
    place where it lies as data or as a sample, so that it can be followed through its row, and compared with the
    other.

    Args:
        run_dir: a finished run of BiFlow on points in the plane, by hidden alignment or distillation.
        path: the picture.
        count: points per panel.
        seed: of the noises.

    Raises:
        UserError: the folder holds no such run, or no checkpoint, where the projections are kept.
    """
    run = open_run(run_dir)
    graph = run.graph
    dataset = graph.section("train_dataloader").dataset
    if not issubclass(graph.model.cls, BiFlow) or dataset.image_shape != POINT_SHAPE:
        raise UserError(f"{run_dir}: is no run of BiFlow on points in the plane")
    method = _load_trained(run)
    if not method.inverse.supervises_groups:
        raise UserError(f"{run_dir}: its reverse model has no states that face those of the flow")
    positions = torch.arange(count)
    data = dataset.batch(positions % len(dataset), None)["images"]
    with torch.no_grad():
        noisy = data + method.noise_std * Draws(seed, positions).normal("data noise", POINT_SHAPE)
        forward = [data, *method.teacher(noisy).states]
        reverse = _reverse_states(method, Draws(seed, positions).normal("sampling noise", POINT_SHAPE))
    _draw([forward, reverse], path)


def _load_trained(run: Run) -> BiFlow:
    """The method with all its trained weights, averaged as those that the run exported."""
    method = run.method()
    checkpoints = find_checkpoints(run.path)
    if not checkpoints:
        raise UserError(f"{run}: has no checkpoint, where the projections of the hidden states are kept")
    state = read_checkpoint(checkpoints[-1])
    exported = next(iter(state["averages"].values()), {})
    try:
        method.load_trained_state({**state["model"], **exported})
    except ValueError as error:
        raise UserError(f"{checkpoints[-1]}: does not fit the run's recipe: {error}") from None
    return method


def _reverse_states(method: BiFlow, z: Tensor) -> list[Tensor]:
    """Samples, projected hidden states 0 .. B - 1 and noise: (N, 2, 1, 1) each."""
    labels = torch.full((len(z),), method.teacher.num_classes)
    output = method.inverse(z, Condition(labels=labels, guidance=torch.zeros(len(z))))
    norm = method.inverse.trajectory_norm
    scales = torch.ones(len(output.hidden)) if norm is None else norm.mean_square.sqrt()
    projected = method.inverse.project(output.hidden)
    return [output.sample, *(scale * state for scale, state in zip(scales, projected, strict=True)), z]


def _draw(rows: list[list[Tensor]], path: Path) -> None:
    columns = len(rows[0])
    last = columns - 2
    between = [f"$x^{{{index}}}$" for index in range(1, last)]
    titles = [
        ["data $x$", "$x^0 = x$ + noise", *between, f"$x^{{{last}}} = z$"],
        ["sample $x'$", *(rf"$\varphi_{{{index}}}(h^{{{index}}})$" for index in range(last)), "new noise $z$"],
    ]
    figure = Figure(figsize=(1.5 * columns, 3.6), layout="constrained")
    panels = figure.subplots(2, columns)
    for axes, label in zip(panels[:, 0], ("flow, forward →", "← BiFlow, one pass"), strict=True):
        axes.set_ylabel(label)
    for row, heading, line in zip(rows, titles, panels, strict=True):
        colours = place_colours(row[0].flatten(1))
        for column, (state, title, axes) in enumerate(zip(row, heading, line, strict=True)):
            # Both panels of a column have one scale, in which nearly all points of either lie.
            limit = max(other[column].abs().quantile(0.998).item() for other in rows)
            axes.scatter(*state.flatten(1).unbind(1), s=2, c=colours, linewidths=0)
            axes.set_title(title, fontsize=11)
            limits = (-1.08 * limit, 1.08 * limit)
            axes.set(xlim=limits, ylim=limits, aspect="equal", xticks=[], yticks=[])
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def place_colours(points: Tensor) -> np.ndarray:
    """(N, 3) colours of (N, 2) places: the angle is the hue, the distance from the origin the lightness."""
    hues = (torch.atan2(points[:, 1], points[:, 0]) / (2 * math.pi) % 1).tolist()
    lightness = (0.75 - 0.4 * points.norm(dim=1).clamp(max=1)).tolist()
    return np.array([colorsys.hls_to_rgb(hue, light, 0.85) for hue, light in zip(hues, lightness, strict=True)])
