"""The page: gradio's components, and which of them starts what. What is computed lies in files without gradio."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genflow.demo.edit_tab import add_edit_tab
from genflow.demo.edited_run import can_edit
from genflow.demo.limits import MOST_PICTURES, MOST_WAITING
from genflow.demo.parts import ALL, QUEUE, answered, grid, guidance_slider, literal, picture
from genflow.demo.sampled_run import SampledRun, read_request

if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.components import Component

#: Side of a sample in pixels; smaller ones are enlarged to it.
_SIDE = 96
_PICTURES = 20
CSS = """
.gradio-container {max-width: 1400px !important; margin: auto}
footer {display: none !important}
[data-testid="status-tracker"]:has(> .error) {display: none !important} /* the message says it; pictures stay */
"""


def build(subjects: Sequence[SampledRun], device: str) -> "Blocks":
    """The page of some runs.

    Args:
        subjects: the runs, each with a column of its own.
        device: where they work, to be shown.
    """
    import gradio

    # Files of pictures are looked at every ten minutes, and removed when they are an hour old.
    with gradio.Blocks(title="GenFlow", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        editable = [subject for subject in subjects if can_edit(subject)]
        with gradio.Tabs():
            with gradio.Tab("Samples"):
                _add_samples(page, subjects, device)
            for subject in editable:
                title = "Edit a picture" if len(editable) == 1 else f"Edit with {subject.name}"
                with gradio.Tab(title, elem_classes="edit"):
                    add_edit_tab(page, subject)
    page.queue(max_size=MOST_WAITING)
    return page


def _add_samples(page: "Blocks", subjects: Sequence[SampledRun], device: str) -> None:
    import gradio

    with gradio.Row(equal_height=True):
        boxes = _class_boxes(subjects)
        count = gradio.Slider(1, MOST_PICTURES, _PICTURES, step=1, label="pictures")
        seed = gradio.Number(0, step=1, label="seed", elem_id="seed", min_width=100)
        other = gradio.Number(1, step=1, label="walk to seed", min_width=100)
        walk = gradio.Slider(0, 1, 0, step=0.01, label="walk", elem_id="walk")
        with gradio.Column(min_width=160):
            sample = gradio.Button("Sample", variant="primary", elem_id="sample")
            following = gradio.Button("Next seed", elem_id="next-seed")
    shown, scales = [], []
    with gradio.Row():
        for number, subject in enumerate(subjects):
            with gradio.Column(min_width=260):
                gradio.Markdown(f"### {literal(subject.name)}\n{literal(subject.description)}")
                scales.append(guidance_slider(subject))
                shown += [picture(f"samples-{number}"), gradio.Markdown(elem_id=f"time-{number}")]

    chosen = [box for box in dict.fromkeys(boxes) if box is not None]
    sliders = [slider for slider in scales if slider is not None]
    inputs = [count, seed, other, walk, *chosen, *sliders]

    def generate(*given: Any) -> list[Any]:
        value = dict(zip(inputs, given, strict=True))
        found: list[Any] = []
        for subject, box, slider in zip(subjects, boxes, scales, strict=True):
            label = None if value.get(box, ALL) == ALL else value[box]
            request = read_request(label, value[count], value[seed], value[other], value[walk])
            images, seconds = subject.sample(request, value.get(slider))
            time = f"**{1000 * seconds / len(images):.3g} ms** per picture ({len(images)} pictures, {device})"
            found += [grid(images, math.ceil(len(images) ** 0.5), _SIDE), time]
        return found

    run = answered(generate)
    quietly = {"show_progress": "hidden", "trigger_mode": "always_last", **QUEUE}
    page.load(run, inputs, shown, **quietly)
    sample.click(run, inputs, shown, **QUEUE)
    following.click(_next, seed, seed, **QUEUE).then(run, inputs, shown, **QUEUE)
    walk.input(run, inputs, shown, **quietly)
    for slider in [count, *sliders]:
        slider.release(run, inputs, shown, **quietly)
    for box in chosen:
        box.input(run, inputs, shown, **quietly)


def _next(seed: int | None) -> int:
    return 0 if seed is None else int(seed) + 1


def _class_boxes(subjects: Sequence[SampledRun]) -> list["Component | None"]:
    """A box for every list of classes, which runs that have the same share; None for runs without classes."""
    import gradio

    users: dict[tuple[str, ...], list[str]] = {}
    for subject in subjects:
        users.setdefault(tuple(subject.class_names), []).append(subject.name)
    boxes: dict[tuple[str, ...], Component | None] = {(): None}
    for names in [names for names in users if names]:
        choices = [("all in turn", ALL), *((name, number) for number, name in enumerate(names))]
        label = "class" if len(users) == 1 else f"class ({', '.join(users[names])})"
        boxes[names] = gradio.Dropdown(choices, value=ALL, label=label, elem_id="class", min_width=140)
    return [boxes[tuple(subject.class_names)] for subject in subjects]
