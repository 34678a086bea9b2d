"""The tab in which a run with a flow edits a picture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from genflow.demo.edited_run import (
    VARIANTS,
    Edited,
    can_inpaint,
    change_class,
    fill_hole,
    fit_hole,
    fit_picture,
    training_picture,
)
from genflow.demo.limits import MOST_WAITING, Recent
from genflow.demo.parts import ALL, QUEUE, answered, grid, guidance_slider, literal, picture
from genflow.demo.sampled_run import SampledRun
from genflow.errors import UserError

if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.components import Component

#: Least sides in pixels of the picture to be edited, and of each picture of a result.
_CANVAS, _SIDE = 320, 128


@dataclass(frozen=True)
class _Parts:
    """What the tab shows; None for what has no sense for the run."""

    canvas: "Component"
    of_class: "Component | None"
    number: "Component | None"
    take: "Component | None"
    old: "Component | None"
    new: "Component | None"
    seed: "Component"
    scale: "Component | None"
    change: "Component | None"
    fill: "Component | None"
    result: "Component"
    said: "Component"


def add_edit_tab(page: "Blocks", subject: SampledRun) -> None:
    """Lay out the tab inside the one that is open, and say what its buttons do.

    Args:
        page: of the tab.
        subject: a run that can edit.
    """
    parts = _lay_out(subject, has_data=_has_data(subject))
    inputs = _there(parts.canvas, parts.old, parts.new, parts.seed, parts.scale)

    def take_picture(number: Any, label: int = ALL) -> Any:
        image, found = training_picture(subject, number, None if label == ALL else label)
        drawn = grid(image[None], 1, _canvas_side(subject))
        return drawn if parts.old is None else (drawn, found)

    def values(given: tuple[Any, ...]) -> tuple[dict[Any, Any], torch.Tensor]:
        value = dict(zip(inputs, given, strict=True))
        drawn = value[parts.canvas]
        return value, fit_picture(drawn and drawn["background"], subject.image_shape)

    def change_picture(*given: Any) -> tuple[Any, str]:
        value, image = values(given)
        old, new = value[parts.old], value[parts.new]
        edited = change_class(subject, image, old, new, value[parts.seed], value.get(parts.scale))
        names = [literal(subject.class_names[label]) for label in (old, new)]
        return _shown(edited), f"Top left the picture of class {names[0]}, then {VARIANTS} times as class {names[1]}."

    def fill_picture(*given: Any) -> tuple[Any, str]:
        value, image = values(given)
        hole = fit_hole(value[parts.canvas]["background"], value[parts.canvas]["layers"], subject.image_shape)
        label = value.get(parts.old, 0)
        edited = fill_hole(subject, image, hole, label, value[parts.seed], value.get(parts.scale))
        return _shown(edited), f"Top left the picture with its hole, then {VARIANTS} ways to fill it."

    shown = [parts.result, parts.said]
    if parts.take is not None:
        source, target = _there(parts.number, parts.of_class), _there(parts.canvas, parts.old)
        taking = page.load(answered(take_picture), source, target, **QUEUE)
        if parts.change is not None:
            taking.success(answered(change_picture), inputs, shown, **QUEUE)
        parts.take.click(answered(take_picture), source, target, **QUEUE)
    if parts.change is not None:
        parts.change.click(answered(change_picture), inputs, shown, **QUEUE)
    if parts.fill is not None:
        parts.fill.click(answered(fill_picture), inputs, shown, **QUEUE)


def _canvas_side(subject: SampledRun) -> int:
    """A multiple of the pictures' side, so that each of their pixels is a square of the canvas."""
    side = subject.image_shape[-1]
    return side * -(-_CANVAS // side)


def _there(*parts: "Component | None") -> list["Component"]:
    return [part for part in parts if part is not None]


def _has_data(subject: SampledRun) -> bool:
    """Whether training pictures can be read here; it also loads what reading them takes."""
    try:
        training_picture(subject, 0)
    except UserError:
        return False
    return True


def _lay_out(subject: SampledRun, has_data: bool) -> _Parts:
    import gradio

    choices = [(name, number) for number, name in enumerate(subject.class_names)]
    of_class = number = take = old = new = change = fill = None
    with gradio.Row():
        with gradio.Column(min_width=340, scale=2):
            canvas = _canvas(_canvas_side(subject))
            if has_data:
                with gradio.Row(equal_height=True):
                    if choices:
                        of_class = gradio.Dropdown([("any", ALL), *choices], value=ALL, label="class", min_width=80)
                    number = gradio.Number(0, step=1, label="number", min_width=80)
                take = gradio.Button("Take this training picture")
        with gradio.Column(min_width=340, scale=3):
            with gradio.Row(equal_height=True):
                if choices:
                    old = gradio.Dropdown(choices, value=0, label="class of the picture", min_width=110)
                    new = gradio.Dropdown(choices, value=len(choices) - 1, label="class to show it as", min_width=110)
                seed = gradio.Number(0, step=1, label="seed", min_width=80)
            scale = guidance_slider(subject)
            with gradio.Row():
                if len(choices) > 1:
                    change = gradio.Button("Change the class", variant="primary", elem_id="change")
                if can_inpaint(subject):
                    fill = gradio.Button("Fill the painted hole", variant="primary", elem_id="fill")
            result = picture("edited")
            said = gradio.Markdown(elem_id="edited-how")
    return _Parts(canvas, of_class, number, take, old, new, seed, scale, change, fill, result, said)


def _shown(edited: Edited) -> Any:
    together = torch.cat([edited.before[None], edited.after])
    return grid(together, (VARIANTS + 1) // 2, _SIDE)


def _canvas(side: int) -> "Component":
    """Where a picture is shown, loaded and painted on; the browser scales what is loaded to ``side`` pixels."""
    import gradio

    canvas = gradio.ImageEditor(
        show_label=False,
        type="pil",
        image_mode="RGBA",
        format="png",
        sources=["upload", "clipboard"],
        transforms=[],
        layers=gradio.LayerOptions(disabled=True),
        brush=gradio.Brush(default_size=side // 8, colors=["#e0353f"], color_mode="fixed"),
        eraser=gradio.Eraser(default_size=side // 8),
        canvas_size=(side, side),
        fixed_canvas=True,
        height=430,
        elem_id="canvas",
    )
    canvas.blob_storage = Recent(MOST_WAITING)
    return canvas
