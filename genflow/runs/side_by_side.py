"""Finished runs beside each other in one picture: samples by class, figures, and the nearest training pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genflow.data.base import Dataset
from genflow.errors import UserError
from genflow.inference.nearest import Nearest, nearest_pictures, usual_distance
from genflow.inference.write_images import to_uint8
from genflow.runs.evaluate import Setting, evaluate_run
from genflow.runs.folder import Run
from genflow.weights import write_atomically

#: Images that a class has in a panel, classes that are shown, and samples beside their nearest training pictures.
PER_CLASS, CLASSES, COMPARED = 6, 10, 12
#: Width of the picture in inches for each panel, and its resolution.
_PANEL, _DPI = 2.9, 130


@dataclass(frozen=True)
class Entry:
    """What is shown of a run.

    Args:
        name: of the run.
        report: of :func:`~genflow.runs.evaluate.evaluate_run`; without figures where the recipe has no evaluation.
        panel: (classes x per_class, C, H, W) samples, class by class.
        compared: (N, C, H, W) samples whose nearest training pictures are shown.
    """

    name: str
    report: dict[str, Any]
    panel: Tensor
    compared: Tensor


def gather(run: Run, guidance: float | None = None, seed: int = 0, device: torch.device | str = "cpu") -> Entry:
    """Sample a run and read or measure its figures.

    Args:
        run: the run; figures that are not in its metrics.json are measured and recorded there.
        guidance: scale; None for the generator's default.
        seed: of the noise.
        device: where to sample.

    Raises:
        UserError: the figures cannot be measured.
    """
    generator = run.generator(device)
    scale = generator.default_guidance if guidance is None else guidance
    setting = Setting(guidance=None if scale == generator.default_guidance else scale)
    if run.graph.recipe.arguments["evaluation"] is None:
        report = {"model": {}, "real": {}, "guidance": scale, "nfe": generator.nfe}
    else:
        report = run.metrics.get(setting.key(scale)) or evaluate_run(run, guidance=setting.guidance, device=device)
    labels = torch.arange(classes_of(generator.num_classes)).repeat_interleave(PER_CLASS)
    panel = generator.sample(labels.to(device), seed, scale).cpu()
    # Of other noise than the panel's, and of all classes in turn.
    others = torch.arange(COMPARED) % max(generator.num_classes, 1)
    compared = generator.sample(others.to(device), seed, scale, first_index=len(labels)).cpu()
    return Entry(run.name, report, panel, compared)


def nearest_of(
    entries: Sequence[Entry], data: Dataset, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Nearest]:
    """The training pictures nearest to every run's samples, by looking through them once.

    Raises:
        UserError: the training data are no pictures, or not of the samples' shape.
    """
    found = nearest_pictures(torch.cat([entry.compared for entry in entries]), data, progress=progress)
    parts = zip(found.distances.split(COMPARED), found.pictures.split(COMPARED), strict=True)
    return [Nearest(distances, pictures) for distances, pictures in parts]


def classes_of(num_classes: int) -> int:
    """How many rows a panel has."""
    return min(num_classes, CLASSES) or PER_CLASS


def training_data(runs: Sequence[Run]) -> Dataset:
    """The data that all of these runs were trained on.

    Raises:
        UserError: they were trained on different ones.
    """
    data: list[Dataset] = [run.graph.section("train_dataloader").dataset for run in runs]
    for run, other in zip(runs, data, strict=True):
        if other.fingerprint() != data[0].fingerprint() or other.image_shape != data[0].image_shape:
            raise UserError(f"{run}: was trained on other data than {runs[0]}")
    return data[0]


def real_panel(data: Dataset) -> Tensor:
    """Training pictures as :func:`gather` lays out samples: of every class the first ones of an even spread."""
    labels = torch.cat(
        [data.batch(part, None)["labels"] for part in torch.arange(len(data)).split(512)]  # some data know no others
    )
    rows = []
    for label in range(classes_of(data.num_classes)):
        own = (labels == label).nonzero().flatten() if data.num_classes else torch.arange(label, len(data), PER_CLASS)
        places = torch.arange(PER_CLASS) * len(own) // PER_CLASS
        rows.append(data.batch(own[places], None)["images"] if len(own) else torch.ones(PER_CLASS, *data.image_shape))
    return torch.cat(rows)


def draw(entries: Sequence[Entry], nearest: Sequence[Nearest], data: Dataset, names: Sequence[str], path: Path) -> None:
    """Write the picture.

    Args:
        entries: the runs.
        nearest: of :func:`nearest_of`.
        data: their training data.
        names: of the classes; empty without.
        path: a PNG.
    """
    from matplotlib.figure import Figure  # imported here since few calls need it

    panels = [("training pictures", real_panel(data)), *((_title(entry), entry.panel) for entry in entries)]
    rows = len(panels[0][1]) // PER_CLASS
    height = _PANEL * rows / PER_CLASS
    width = _PANEL * len(panels) + 1.1
    heights = [height + 0.5, 2 * width / len(entries) / COMPARED + 0.6]
    if all(entry.report["model"] for entry in entries):
        heights.append(0.26 * (len(entries) + 3) + 0.1)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    top, middle, *bottom = np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights)))
    for number, (axes, (title, panel)) in enumerate(zip(top.subplots(1, len(panels)), panels, strict=True)):
        _show(axes, panel, PER_CLASS, title)
        if number == 0 and names:
            side = panel.shape[-2] + 1
            axes.set_yticks([side * (row + 0.5) for row in range(rows)], [_short(name) for name in names[:rows]])
            axes.tick_params(length=0, labelsize=8)
    middle.suptitle("samples above the training pictures that are nearest in their pixels", fontsize=9)
    usual = usual_distance(data)
    strips = np.atleast_1d(middle.subplots(1, len(entries)))
    for axes, entry, found in zip(strips, entries, nearest, strict=True):
        _show(axes, torch.cat([entry.compared, found.pictures]), COMPARED, "")
        apart = float(found.distances.median())
        said = f"{entry.name}: {apart:.0f} grey levels away\ntraining pictures from each other {usual:.0f}"
        axes.set_xlabel(said, fontsize=8)
    for part in bottom:
        _tabulate(part.subplots(), entries)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=_DPI, bbox_inches="tight"))


def _title(entry: Entry) -> str:
    count, scale = entry.report["nfe"], entry.report["guidance"]
    return f"{entry.name}\n{count} evaluation{'s' if count > 1 else ''}, guidance {scale:g}"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _show(axes: Any, images: Tensor, columns: int, title: str) -> None:
    axes.imshow(_grid(images, columns), interpolation="nearest", vmin=0, vmax=255, cmap="gray")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _grid(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """(B, C, H, W) images in [-1, 1] to one of (rows, columns, 3 or nothing) bytes, a white line between them."""
    shown = np.pad(to_uint8(images).numpy(), ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    lines = [np.concatenate(list(shown[first : first + columns]), axis=1) for first in range(0, len(shown), columns)]
    return np.concatenate(lines).squeeze(-1) if shown.shape[-1] == 1 else np.concatenate(lines)


def _tabulate(axes: Any, entries: Sequence[Entry]) -> None:
    figures = [name for name in entries[0].report["model"] if all(name in entry.report["model"] for entry in entries)]
    rows = [[f"{entry.report['model'][name]:.3f}" for name in figures] for entry in entries]
    labels, real = [entry.name for entry in entries], entries[0].report["real"]
    if real:
        rows.append([f"{real[name]:.3f}" if name in real else "" for name in figures])
        labels.append("real pictures")
    table = axes.table(rows, rowLabels=labels, colLabels=[name.replace("_", " ") for name in figures], loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    axes.axis("off")
