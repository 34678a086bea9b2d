"""The picture of an ablation: samples of every row beside its figure of merit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.inference.write_images import to_uint8
from genflow.runs.folder import open_run
from genflow.weights import write_atomically

#: Ratio of the largest to the smallest figure above which the axis is logarithmic.
_WIDE = 10


def sample_strip(run: Path, guidance: float, classes: int) -> Tensor:
    """One image of each of the first ``classes`` classes, always from the same noise, side by side: (H, W) uint8."""
    generator = open_run(run).generator()
    images = generator.sample(torch.arange(classes), seed=0, guidance=guidance)
    return torch.cat(list(to_uint8(images)[..., 0]), dim=1)


def draw_ablation(
    results: Sequence[dict[str, Any]], strips: Sequence[Tensor], path: Path, figure_of_merit: str = "fd"
) -> None:
    """Write a PNG with a line per row: label, samples, the figure of every seed and the mean, the paper's figure.

    Args:
        results: what :func:`genflow.reproduction.ablation.measure` returned.
        strips: (H, W) uint8 samples of each row.
        path: the picture.
        figure_of_merit: which figure is drawn; smaller is better.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    count = len(results)
    figure = Figure(figsize=(11, 0.62 * count + 0.9), dpi=110, layout="constrained")
    grid = figure.add_gridspec(count, 2, width_ratios=(1.5, 1.0))
    points = figure.add_subplot(grid[:, 1])
    guided = len({result["guidance"] for result in results}) > 1
    every = [value for result in results for value in result["figures"][figure_of_merit]]
    if max(every) > _WIDE * min(every) > 0:
        points.set_xscale("log")
        points.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        points.xaxis.set_major_formatter("{x:g}")
        points.xaxis.set_minor_formatter(NullFormatter())
    for index, (result, strip) in enumerate(zip(results, strips, strict=True)):
        axes = figure.add_subplot(grid[index, 0])
        axes.imshow(strip.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        scale = f", w = {result['guidance']:g}" if guided and result["guidance"] else ""
        name = f"{result['block']}:\n{result['label']}{scale}"
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        values = result["figures"][figure_of_merit]
        points.plot(values, [index] * len(values), "o", color="tab:blue", alpha=0.5, markersize=5)
        points.plot([sum(values) / len(values)], [index], "|", color="black", markersize=14, markeredgewidth=2)
        if result["paper"] is not None:
            points.annotate(
                f"paper {result['paper']:g}",
                (1.0, index),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    points.set_ylim(count - 0.5, -0.5)
    points.set_yticks([])
    points.grid(axis="x", alpha=0.3)
    points.set_xlabel("Fréchet distance in pixels (every seed, mean); smaller is better", fontsize=8)
    points.set_title("paper: FID on ImageNet-256", fontsize=8, loc="right")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
