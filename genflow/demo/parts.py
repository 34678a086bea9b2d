"""What both tabs of the page are made of."""

import functools
import html
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from genflow.demo.sampled_run import SampledRun
from genflow.errors import UserError, reason
from genflow.inference.write_images import tile

if TYPE_CHECKING:
    from gradio.components import Component

#: One request at a time, so that none disturbs what another measures; the page alone sends them.
QUEUE = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
#: In a box of classes, that which is none of them.
ALL = -1


def answered(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its errors as a message in the page; those that are not the user's are printed as well."""
    import gradio

    @functools.wraps(function)
    def call(*inputs: Any) -> Any:
        try:
            return function(*inputs)
        except UserError as error:
            message = str(error)
        except Exception as error:  # whatever it is, the server goes on
            traceback.print_exc()
            message = reason(error)
        raise gradio.Error(html.escape(message, quote=False), print_exception=False)

    return call


def grid(images: Tensor, columns: int, side: int) -> NDArray[Any]:
    """(B, C, H, W) images in [-1, 1] as one picture, small ones enlarged to ``side`` pixels."""
    return tile(images, columns, side).numpy()


def picture(name: str) -> "Component":
    """Where pictures are shown; ``name`` is the element's."""
    import gradio

    return gradio.Image(show_label=False, format="png", interactive=False, buttons=[], elem_id=name)


def guidance_slider(subject: SampledRun) -> "Component | None":
    """A slider over the scales that suit a run; None where there is nothing to choose."""
    import gradio

    scales = subject.guidance
    if scales is None:
        return None
    info = f"{scales.none:g} is no guidance"
    return gradio.Slider(scales.low, scales.high, scales.default, step=0.05, label="guidance scale", info=info)


def literal(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|<>~$" else letter for letter in text)
