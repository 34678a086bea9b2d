"""Random resized crops: golden numbers, the law of the boxes, invariants of the resampling (docs/pmf.md, P9)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from genflow.data.crops import crop_resize, draw_boxes
from genflow.draws import Draws

GOLDEN = Path(__file__).parents[1] / "golden" / "pmf" / "crop_resize.npz"


def draws(count, seed=0):
    return Draws(seed, torch.arange(count))


def random_images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_golden():
    with np.load(GOLDEN, allow_pickle=False) as golden:
        boxes = torch.from_numpy(golden["boxes_top_left_h_w"])
        images = torch.from_numpy(golden["image"]).permute(2, 0, 1).expand(len(boxes), -1, -1, -1)
        expected = torch.from_numpy(golden["out"]).permute(0, 3, 1, 2)
        found = crop_resize(images, boxes, int(golden["out_size"]))
    assert torch.allclose(found, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (40, 25), (8, 8), (2, 3), (1, 1)])
def test_boxes_lie_inside_the_image(height, width):
    top, left, box_height, box_width = draw_boxes(draws(4000), height, width).unbind(dim=1)
    assert top.dtype == torch.int64
    for start, length, side in ((top, box_height, height), (left, box_width, width)):
        assert start.min() == 0 and length.min() >= 1
        assert (start + length).max() == side


def test_law_of_boxes():
    """Against an independent computation: area uniform in [0.08, 1], log-uniform aspect, rounded, clipped once."""
    height, width, count = 64, 48, 20000
    random = np.random.default_rng(0)
    area = random.uniform(0.08, 1, count) * height * width
    aspect = (4 / 3) ** random.uniform(-1, 1, count)
    heights = np.clip(np.round(np.sqrt(area / aspect)), 1, height)
    widths = np.clip(np.round(np.sqrt(area * aspect)), 1, width)
    tops, lefts = random.integers(0, height - heights + 1), random.integers(0, width - widths + 1)
    expected = (tops, lefts, heights, widths)
    found = draw_boxes(draws(count), height, width).double().unbind(dim=1)
    for ours, theirs in zip(found, expected, strict=True):
        assert ks_2samp(ours.numpy(), theirs).pvalue > 0.01
    for derive in (lambda t, l, h, w: h * w, lambda t, l, h, w: w / h, lambda t, l, h, w: t * width + l):  # noqa: E741
        assert ks_2samp(derive(*found).numpy(), derive(*expected)).pvalue > 0.01


def test_boxes_and_crops_do_not_depend_on_the_rest_of_the_batch():
    images, whole = random_images(6, 3, 20, 24), draws(6)
    boxes = draw_boxes(whole, 20, 24)
    parts = [draw_boxes(whole[part], 20, 24) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert torch.equal(torch.cat(parts), boxes) and len(boxes.unique(dim=0)) == 6
    assert not torch.equal(draw_boxes(draws(6, seed=1), 20, 24), boxes)
    alone = torch.cat([crop_resize(images[i : i + 1], boxes[i : i + 1], 16) for i in range(6)])
    assert torch.allclose(crop_resize(images, boxes, 16), alone, atol=1e-6)


def test_the_whole_image_at_its_own_size_stays_as_it_is():
    images = random_images(2, 3, 12, 12).double()
    boxes = torch.tensor([[0, 0, 12, 12]]).expand(2, -1)
    assert torch.allclose(crop_resize(images, boxes, 12), images, atol=1e-14)


@pytest.mark.parametrize("size", [4, 32])
def test_constant_images_stay_constant(size):
    images = torch.full((50, 1, 9, 11), 0.7, dtype=torch.float64)
    cropped = crop_resize(images, draw_boxes(draws(50), 9, 11), size)
    assert cropped.shape == (50, 1, size, size) and torch.allclose(cropped, torch.tensor(0.7, dtype=torch.float64))


def test_the_border_of_a_box_takes_in_pixels_around_it_and_none_far_away():
    images = torch.zeros(1, 1, 20, 20, requires_grad=True)
    crop_resize(images, torch.tensor([[6, 8, 5, 7]]), 15).sum().backward()  # enlarged: the kernel reaches 2 pixels
    touched = images.grad[0, 0] != 0
    assert touched.any(dim=1).nonzero().flatten().tolist() == list(range(4, 13))
    assert touched.any(dim=0).nonzero().flatten().tolist() == list(range(6, 17))


def test_gradient():
    images = random_images(2, 1, 6, 5).double().requires_grad_()
    boxes = torch.tensor([[0, 1, 4, 4], [2, 0, 3, 5]])
    assert torch.autograd.gradcheck(lambda x: crop_resize(x, boxes, 4), images)
