"""Edits of the page: pictures and painted holes in a run's pixels, and what is made of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genflow.backbones import GroupedTransformer
from genflow.codecs import Identity
from genflow.demo.edited_run import (
    VARIANTS,
    can_edit,
    can_inpaint,
    change_class,
    fill_hole,
    fit_hole,
    fit_picture,
    training_picture,
)
from genflow.demo.sampled_run import SampledRun
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.flow_teachers import TARFlow
from genflow.guidance import TrainingTimeCFG
from genflow.inference import editing
from genflow.inference.write_images import tile
from genflow.inverse_heads import HiddenAlignment
from genflow.losses import SquaredError
from genflow.methods import BiFlow
from genflow.runs.folder import Run, open_run

SHAPE, CLASSES = (1, 8, 8), 3


class Made(Run):
    """A run of a method that was made and not trained."""

    class_names = ("a", "b", "c")

    def __init__(self):
        super().__init__(Path("made"), None)

    def method(self, average=None):
        torch.manual_seed(0)
        teacher = TARFlow(8, 1, 2, 16, 2, 1, CLASSES, head_width=8, prefix_tokens=2, bound=3.0)
        head = HiddenAlignment(GroupedTransformer(8, 1, 2, 16, 2, 2, 1, 1, CLASSES, 2, 1), SquaredError())
        method = BiFlow(teacher, head, Identity(8, 1), SquaredError(), 0.3, TrainingTimeCFG())
        for parameter in method.parameters():
            nn.init.normal_(parameter, std=0.2)
        return method.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def subject():
    return SampledRun(Made())


@pytest.fixture(scope="module")
def picture():
    grey = torch.randint(0, 256, SHAPE, generator=torch.Generator().manual_seed(0))
    return grey.float() / 127.5 - 1


def drawing(images, side=320):
    return Image.fromarray(tile(images, 1, side).numpy())


def test_an_enlarged_picture_comes_back(picture):
    assert torch.allclose(fit_picture(drawing(picture[None]), SHAPE), picture, atol=1e-6)
    colours = torch.rand(3, 16, 16).mul(255).round() / 127.5 - 1
    assert torch.allclose(fit_picture(drawing(colours[None], 512), (3, 16, 16)), colours, atol=1e-6)


def test_a_margin_is_cut_and_the_middle_taken(picture):
    wide = np.zeros((40, 80, 4), dtype=np.uint8)
    wide[10:30] = [0, 0, 0, 255]  # 20 x 80 pixels, of which the middle is red
    wide[10:30, 30:50, 0] = 255
    found = fit_picture(Image.fromarray(wide), (3, 4, 4))
    assert torch.equal(found, torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 4, 4))
    layer = np.zeros((40, 80, 4), dtype=np.uint8)
    layer[10:20, 40:60, 3] = 200  # the upper right quarter of that middle, and beyond
    hole = fit_hole(Image.fromarray(wide), [Image.fromarray(layer)], (3, 4, 4))
    assert hole[:2, 2:].all() and hole.sum() == 4


def test_a_pixel_is_in_the_hole_if_half_of_it_is_painted(picture):
    layer = np.zeros((320, 320, 4), dtype=np.uint8)
    layer[0:40, 0:21, 3] = 255  # more than half of the first pixel
    layer[80:120, 80:99, 3] = 255  # less than half of another
    empty = Image.new("RGBA", (320, 320))
    hole = fit_hole(drawing(picture[None]), [Image.fromarray(layer), empty], SHAPE)
    assert hole[0, 0] and hole.sum() == 1
    assert not fit_hole(drawing(picture[None]), [], SHAPE).any()


@pytest.mark.parametrize("nothing", [None, Image.new("RGBA", (9, 9)), Image.new("RGB", (9, 9), "white")])
def test_an_empty_canvas_is_no_picture(nothing):
    with pytest.raises(UserError, match="there is no picture; upload"):
        fit_picture(nothing, SHAPE)


def test_a_changed_class_is_that_of_the_tool(subject, picture):
    edited = change_class(subject, picture, 0, 2, 5, 1.5)
    columns = (torch.full((VARIANTS,), label) for label in (0, 2))
    batch = picture.expand(VARIANTS, *SHAPE)
    expected = editing.class_edit(subject.method, batch, *columns, Draws(5, torch.arange(VARIANTS)), 1.5)
    assert torch.equal(edited.before, picture) and torch.allclose(edited.after, expected.clamp(-1, 1), atol=1e-6)
    assert len(edited.after.flatten(1).unique(dim=0)) == VARIANTS
    assert not torch.allclose(edited.after, change_class(subject, picture, 0, 1, 5, 1.5).after, atol=1e-3)


def test_a_filled_hole_leaves_the_rest(subject, picture):
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[2:5, 3:6] = True
    edited = fill_hole(subject, picture, hole, 1, 0, 0.0)
    assert torch.equal(edited.after[..., ~hole], picture[..., ~hole].expand(VARIANTS, -1, -1))
    assert torch.equal(edited.before[..., ~hole], picture[..., ~hole]) and not edited.before[..., hole].any()
    assert len(edited.after[..., hole].flatten(1).unique(dim=0)) == VARIANTS
    with pytest.raises(UserError, match="there is no hole; paint one"):
        fill_hole(subject, picture, torch.zeros_like(hole), 1, 0, 0.0)


def test_wrong_numbers_are_refused(subject, picture):
    with pytest.raises(UserError, match="class: found 3, expected a whole number from 0 to 2"):
        change_class(subject, picture, 0, 3, 0, 0.0)
    with pytest.raises(UserError, match="seed: found nothing"):
        change_class(subject, picture, 0, 1, None, 0.0)
    with pytest.raises(UserError, match="guidance: found 8, expected 0 to 7"):
        change_class(subject, picture, 0, 1, 0, 8)


def test_training_pictures_and_who_edits(subject, finished_run):
    tiny = SampledRun(open_run(finished_run))
    assert can_edit(subject) and can_inpaint(subject) and not can_edit(tiny)
    image, label = training_picture(tiny, 1, 4)
    dataset = tiny.run.graph.section("train_dataloader").dataset
    second = (dataset.labels == 4).nonzero()[1]
    assert label == 4 and torch.equal(image[None], dataset.images[second])
    with pytest.raises(UserError, match="number of the training picture: found 999, expected at most"):
        training_picture(tiny, 999, 4)
