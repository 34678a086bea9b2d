"""Points in the plane: where they lie, how they are scaled, and that a point is a function of its number."""

import math
from typing import get_args

import pytest
import torch

from genflow.data import Toy2D
from genflow.data.toy2d import MODE_CENTRE, MODE_STD, Distribution, draw_points, projection
from genflow.draws import Draws
from genflow.registry import DATASETS

NAMES = get_args(Distribution)
COUNT = 20000


def draw(name, seed=3):
    return draw_points(name, Draws(seed, torch.arange(COUNT))).double()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "two_modes"])
def test_scale(name):
    points = draw(name)
    assert points.shape == (COUNT, 2)
    assert (points.abs() >= 1).any(dim=1).double().mean() < 1e-3
    assert (points.abs().amax(dim=0) > 0.7).all()
    assert ((points.std(dim=0) > 0.4) & (points.std(dim=0) < 0.5)).all()
    assert (points.mean(dim=0).abs() < 0.15).all()


@pytest.mark.parametrize("name", NAMES)
def test_sample_is_a_function_of_its_number(name):
    dataset = DATASETS.build({"type": "Toy2D", "name": name})
    assert len(dataset) == 65536 and len(Toy2D(name, size=10)) == 10
    batch = dataset.batch(torch.arange(1000), Draws(0, torch.arange(1000)))
    assert batch["images"].shape == (1000, *dataset.image_shape) == (1000, 2, 1, 1)
    assert batch["images"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64 and not batch["labels"].any()
    again = dataset.batch(torch.tensor([7, 0, 7]), None)
    assert torch.equal(again["images"], batch["images"][[7, 0, 7]])
    assert len(batch["images"].unique(dim=0)) == 1000
    assert not torch.equal(draw(name, seed=3), draw(name, seed=4))


def test_swiss_roll_has_the_same_number_of_points_along_every_part_of_its_length():
    points = draw("swiss_roll") + 0.1
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    # The radius is proportional to the angle, 0.4 a turn, so equal lengths lie in rings of about equal area.
    shares = torch.histc(radius.square(), bins=5, min=0.09 + 0.03, max=0.81 - 0.03)
    assert (shares / shares.mean() - 1).abs().max() < 0.06
    turns = radius / 0.4 - angle / (2 * math.pi)
    assert ((turns - turns.round()).abs() * 0.4).mean() == pytest.approx(0.015 * math.sqrt(2 / math.pi), rel=0.1)


def test_checkerboard_fills_its_dark_squares_alike():
    points = draw("checkerboard")
    cells = ((points / 0.84 + 1) * 2).floor().long()
    assert cells.min() == 0 and cells.max() == 3
    assert (cells.sum(dim=1) % 2 == 0).all()
    counts = (4 * cells[:, 0] + cells[:, 1]).bincount()
    counts = counts[counts > 0]
    assert len(counts) == 8 and (counts / (COUNT / 8) - 1).abs().max() < 0.08


def test_eight_gaussians():
    points = draw("eight_gaussians")
    component = (torch.atan2(points[:, 1], points[:, 0]) / (math.pi / 4)).round().long() % 8
    assert (component.bincount(minlength=8) / (COUNT / 8) - 1).abs().max() < 0.08
    for index in range(8):
        own = points[component == index]
        centre = 0.65 * torch.tensor([math.cos(index * math.pi / 4), math.sin(index * math.pi / 4)])
        assert (own.mean(dim=0) - centre).abs().max() < 5e-3
        assert own.std(dim=0) == pytest.approx([0.05, 0.05], rel=0.06)


def test_two_moons_are_half_circles_about_two_centres():
    points = draw("two_moons") / torch.tensor([0.52, 0.85])
    upper = (points - torch.tensor([-0.5, -0.25])).norm(dim=1)
    lower = (points - torch.tensor([0.5, 0.25])).norm(dim=1)
    distance = torch.minimum((upper - 1).abs(), (lower - 1).abs())
    assert distance.mean() == pytest.approx(0.05 * math.sqrt(2 / math.pi), rel=0.1)
    assert ((upper - 1).abs() < (lower - 1).abs()).double().mean() == pytest.approx(0.5, abs=0.02)


def test_a_plane_in_more_dimensions_leads_back():
    columns = projection(512)
    assert columns.shape == (512, 2) and columns.dtype == torch.float32
    assert (columns.T @ columns - torch.eye(2)).abs().max() < 1e-6
    assert columns.abs().max() < 0.3  # no axis stands out
    assert torch.equal(projection(512), columns) and torch.equal(projection(2), torch.eye(2))
    dataset, indices = Toy2D("swiss_roll", dimensions=512), torch.arange(100)
    vectors = dataset.batch(indices, None)["images"]
    assert dataset.image_shape == (512, 1, 1) and vectors.shape == (100, 512, 1, 1)
    plane = Toy2D("swiss_roll").batch(indices, None)["images"].flatten(1)
    assert (vectors.flatten(1) @ columns - plane).abs().max() < 1e-6
    assert (vectors.flatten(1) - plane @ columns.T).abs().max() < 1e-6


def test_two_modes_lie_left_and_right_at_one_height_and_are_wide():
    points = draw_points("two_modes", Draws(0, torch.arange(4000)))
    left, right = points[points[:, 0] < 0], points[points[:, 0] > 0]
    assert abs(len(left) - len(right)) < 200
    for side, sign in ((left, -1), (right, 1)):
        assert torch.allclose(side.mean(dim=0), torch.tensor([sign * MODE_CENTRE, 0.0]), atol=0.015)
        assert torch.allclose(side.std(dim=0), torch.tensor(MODE_STD), rtol=0.1)
    assert MODE_STD[0] > 1.5 * MODE_STD[1]
