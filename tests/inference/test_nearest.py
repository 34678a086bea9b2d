"""Nearest training pictures: copies, mirror images, a picture's own place, data that are no pictures."""

import pytest
import torch

from genflow.data import Digits
from genflow.errors import UserError
from genflow.inference.nearest import nearest_pictures, usual_distance


def test_copies_are_found_at_no_distance_mirrored_or_not():
    data, told = Digits("train"), []
    copies = data.images[[3, 700]].clone()
    copies[1] = copies[1].flip(-1)
    found = nearest_pictures(copies, data, progress=lambda done, total: told.append((done, total)))
    assert torch.equal(found.pictures, copies) and found.distances.max() < 1e-3
    assert told[-1] == (len(data), len(data))


def test_distances_are_in_grey_levels():
    data = Digits("train")
    grey = torch.zeros(1, 1, 8, 8)
    expected = (127.5 * (data.images - grey)).square().flatten(1).mean(dim=1).sqrt()
    found = nearest_pictures(grey, data)
    assert found.distances[0] == pytest.approx(float(expected.min()), rel=1e-5)
    assert (127.5 * found.pictures).square().mean().sqrt() == pytest.approx(float(expected.min()), rel=1e-5)


def test_a_picture_is_not_its_own_neighbour():
    data = Digits("train")
    own = torch.tensor([5, 600])
    found = nearest_pictures(data.images[own], data, own)
    assert (found.distances > 1).all()
    among = torch.arange(0, 100) * len(data) // 100
    expected = nearest_pictures(data.images[among], data, among).distances.median()
    assert usual_distance(data) == pytest.approx(float(expected), rel=1e-6)


def test_data_that_hold_no_such_pictures_are_one_line():
    with pytest.raises(UserError, match="the training data hold no pictures to compare with"):
        nearest_pictures(torch.zeros(1, 3, 8, 8), Digits("train"))
