"""Drifting in the plane, from three starts to two modes (docs/drifting.md, D17), as figures, strips and films."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch import Tensor

from genflow.data.toy2d import MODE_CENTRE, MODE_STD, Toy2D
from genflow.engine.averages import swapped
from genflow.errors import UserError
from genflow.evaluation.metrics import energy_distance
from genflow.generators.base import Generator
from genflow.registry import HOOKS
from genflow.reproduction.ablation import Job
from genflow.runs.folder import open_run
from genflow.weights import read_weights, write_atomically, write_weights

STARTS = {
    "middle": "a broad blob between the modes",
    "far": "a blob far above",
    "collapsed": "a small blob on the left mode",
}
#: Updates after which the paper shows samples.
SHOWN = (0, 8, 20, 80)
_INTERVAL = 2
#: A sample within so many standard deviations of a mode is near it; 98.9 % of the target's are.
_NEAR = 3.0
_FOLDER = "points"
_SAMPLE_SEED = 1


@HOOKS.register_module()
class PointsHook(Hook):
    """Keeps samples from always the same noise in ``points/``, of the weights that the run would export.

    Args:
        interval: updates from one file to the next; the first is of untrained weights, the last of trained ones.
        count: samples in each.
    """

    priority = "LOWEST"

    def __init__(self, interval: int, count: int = 2000):
        self.interval = interval
        self.count = count

    def before_train(self, runner) -> None:
        if runner.iter == 0:
            self._keep(runner, 0)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        step = batch_idx + 1
        if step % self.interval == 0 or step == runner.max_iters:
            self._keep(runner, step)

    def _keep(self, runner, step: int) -> None:
        if not is_main_process():
            return
        method = runner.method.eval()
        with swapped(method.trained_parameters(), runner.exported_average):
            points = draw_samples(method.generator, self.count)
        method.train()
        write_weights(Path(runner.work_dir) / _FOLDER / f"step_{step:08d}.safetensors", {"points": points})


def draw_samples(generator: Generator, count: int) -> Tensor:
    """(count, 2) samples in the plane, always from the same noise."""
    device = next(generator.parameters()).device
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    return generator.sample(labels, _SAMPLE_SEED, decode=False).flatten(1)


def toy_jobs(recipes: Path, out: Path, seed: int = 0) -> list[Job]:
    """The three runs, which keep samples on their way."""
    return [toy_job(recipes, start, out / start, seed) for start in STARTS]


def toy_job(recipes: Path, start: str, work_dir: Path, seed: int, overrides: tuple[str, ...] = ()) -> Job:
    """A run from one of :data:`STARTS`."""
    points = f"custom_hooks=[{{type: PointsHook, interval: {_INTERVAL}}}]"
    hook = ("custom_imports=[genflow.reproduction.drift_toy]", points)
    return Job(recipes / f"drift_toy_{start}.yaml", work_dir, seed, (*hook, *overrides), threads=1)


def read_points(run: Path) -> dict[int, Tensor]:
    """The (N, 2) samples that a run kept, by updates, in their order.

    Raises:
        UserError: it kept none, or a file is damaged.
    """
    open_run(run)
    files = sorted((run / _FOLDER).glob("step_*.safetensors"))
    if not files:
        raise UserError(f"{run}: has no {_FOLDER}/, where a run of the toy keeps samples")
    return {int(file.stem.removeprefix("step_")): read_weights(file)["points"] for file in files}


def shown(points: dict[int, Tensor]) -> dict[int, Tensor]:
    """Those of :data:`SHOWN` and the last."""
    return {step: value for step, value in points.items() if step in (*SHOWN, max(points))}


def target_points(count: int) -> Tensor:
    """(count, 2) points of the target, the first of the data set."""
    return Toy2D("two_modes").batch(torch.arange(count), None)["images"].flatten(1)


def figures(points: Tensor) -> dict[str, float]:
    """The shares of (N, 2) points near the left and the right mode, and their energy distance to N target points."""
    std = points.new_tensor(MODE_STD)
    near = [
        (((points - points.new_tensor([centre, 0.0])) / std).norm(dim=1) < _NEAR).double().mean().item()
        for centre in (-MODE_CENTRE, MODE_CENTRE)
    ]
    distance = energy_distance(points, target_points(len(points)))
    return {"left": near[0], "right": near[1], "energy_distance": distance}


def toy_figures(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """:func:`figures` of the shown samples: ``{start: {updates: ...}}``, and of other points of the target."""
    target = Toy2D("two_modes")
    count = len(next(iter(read_points(out / next(iter(STARTS))).values())))
    others = target.batch(torch.arange(count, 2 * count), None)["images"].flatten(1)
    runs = {
        start: {str(step): figures(value) for step, value in shown(read_points(out / start)).items()}
        for start in STARTS
    }
    return {**runs, "target": {"0": figures(others)}}


def format_toy(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """What :func:`toy_figures` returned as a Markdown table."""
    titles = ("start", "updates", "near the left mode", "near the right mode", "energy distance")
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---|---|---|"]
    for start, rows in results.items():
        for step, row in rows.items():
            label, updates = ("other points of the target", "") if start == "target" else (start, step)
            cells = (label, updates, f"{row['left']:.3f}", f"{row['right']:.3f}", f"{row['energy_distance']:.4f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_forces(run: Path) -> list[float]:
    """||V||^2 before every update of a run: the mean square of the force of its first temperature."""
    with (run / "scalars.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    name = next(name for name in lines[0] if name.startswith("force_"))
    return [line[name] for line in lines]


def draw_strip(run: Path, title: str, path: Path) -> None:
    """Write a PNG: samples after the shown updates over the target's points, and ||V||^2 before every update."""
    from matplotlib.figure import Figure

    every, forces = read_points(run), read_forces(run)
    points, window = shown(every), window_of([every[0], every[max(every)]])
    figure = Figure(figsize=(2.3 * len(points) + 3.0, 2.3 * height_of(window) + 0.75), dpi=110, layout="constrained")
    *panels, curve = figure.subplots(1, len(points) + 1, width_ratios=[1.0] * len(points) + [1.25])
    for axes, (step, value) in zip(panels, points.items(), strict=True):
        scatter(axes, value, window)
        axes.set_title(f"{step} updates", fontsize=10)
    _curve(curve, forces)
    figure.suptitle(title, fontsize=11)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def draw_film(run: Path, title: str, path: Path) -> None:
    """Write a GIF: samples on their way over the target's points, and ||V||^2 growing beside them.

    Up to the last of :data:`SHOWN` every kept state is a frame, then every tenth.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    points, forces = read_points(run), read_forces(run)
    window = window_of([points[0], points[max(points)]])
    figure = Figure(figsize=(7.4, 3.9 * height_of(window) + 0.8), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panel, curve = figure.subplots(1, 2, width_ratios=(1.3, 1.0))
    moving = scatter(panel, points[0], window)
    line, head = _curve(curve, forces)
    figure.suptitle(title, fontsize=11)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the same for every frame
    frames = []
    for step, value in points.items():
        if step > SHOWN[-1] and step % (10 * _INTERVAL) and step != max(points):
            continue
        moving.set_offsets(value.numpy())
        panel.set_title(f"{step} updates", fontsize=10)
        done = min(step + 1, len(forces))  # the force that the shown samples feel; nobody measures the last ones'
        line.set_data(range(done), forces[:done])
        head.set_data([done - 1], [forces[done - 1]])
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    palette = frames[-1].quantize(64, method=Image.Quantize.MAXCOVERAGE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [900, *[110] * (len(frames) - 2), 2500]  # milliseconds
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    write_atomically(path, lambda temporary: frames[0].save(temporary, format="GIF", **options))


def window_of(points: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Limits of both axes: the target, and the given (N, 2) samples."""
    every = torch.cat([*points, target_points(2000), torch.tensor([[-0.9, -0.5], [0.9, 0.5]])])
    low, high = every.amin(dim=0) - 0.05, every.amax(dim=0) + 0.05
    return {"xlim": (low[0].item(), high[0].item()), "ylim": (low[1].item(), high[1].item())}


def height_of(window: dict[str, tuple[float, float]]) -> float:
    """Of a panel, in units of its width."""
    (left, right), (low, high) = window["xlim"], window["ylim"]
    return (high - low) / (right - left)


def scatter(axes: Any, points: Tensor, window: dict[str, tuple[float, float]]) -> Any:
    """Draw (N, 2) samples over the target's points, and return them, so that they can be moved."""
    axes.scatter(*target_points(2000).unbind(1), s=3, c="0.78", linewidths=0)
    axes.set(**window, aspect="equal", xticks=[], yticks=[])
    return axes.scatter(*points.unbind(1), s=3, c="tab:blue", alpha=0.6, linewidths=0)


def _curve(axes: Any, forces: list[float]) -> tuple[Any, Any]:
    axes.set_yscale("log")
    (line,) = axes.plot(forces, color="tab:red", linewidth=1.0)
    (head,) = axes.plot([len(forces) - 1], forces[-1:], "o", color="tab:red", markersize=4)
    axes.set_title("$\\|V\\|^2$", fontsize=10)
    axes.set_xlabel("updates", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return line, head
