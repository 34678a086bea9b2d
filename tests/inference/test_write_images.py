"""Points as scatter pictures; grids and single pictures are in ``test_sampling.py``."""

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.errors import UserError
from genflow.inference.write_images import save_grid, save_points, to_pil, write_images


def test_points_are_drawn_where_they_lie(tmp_path):
    corners = torch.tensor([[-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
    cloud = (corners.repeat_interleave(300, 0) + 0.02 * torch.randn(900, 2)).view(-1, 2, 1, 1)
    save_points(cloud, tmp_path / "deep" / "points.png")
    picture = np.array(Image.open(tmp_path / "deep" / "points.png").convert("RGB")).astype(int)
    assert picture.shape == (480, 480, 3)
    blue = picture[..., 2] - picture[..., 0] > 60
    # Quarters of the picture: the lower left one is empty.
    quarters = blue[:240, :240].sum(), blue[:240, 240:].sum(), blue[240:, 240:].sum(), blue[240:, :240].sum()
    assert min(quarters[:3]) > 50 and quarters[3] == 0


def test_grid_of_points_is_one_scatter_picture(tmp_path):
    points = torch.rand(20, 2, 1, 1) - 0.5
    save_grid(points, tmp_path / "grid.png", columns=5)
    save_points(points, tmp_path / "points.png")
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "points.png").read_bytes()


def test_vectors_are_drawn_in_the_plane_where_they_lie(tmp_path):
    """A long thin cloud in some direction of 20 dimensions is a line from border to border of the picture."""
    direction = torch.nn.functional.normalize(torch.randn(20), dim=0)
    cloud = torch.linspace(-0.9, 0.9, 600).unsqueeze(1) * direction + 0.002 * torch.randn(600, 20)
    save_grid(cloud.view(-1, 20, 1, 1), tmp_path / "vectors.png", columns=30)
    picture = np.array(Image.open(tmp_path / "vectors.png").convert("RGB")).astype(int)
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 60)
    assert picture.shape == (480, 480, 3)
    assert max(np.ptp(rows), np.ptp(columns)) > 300 and min(np.ptp(rows), np.ptp(columns)) < 20


def test_pictures_are_what_is_written(tmp_path):
    images = torch.linspace(-1.2, 1.2, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    for channels, mode in ((1, "L"), (3, "RGB")):
        pictures = to_pil(images[:, :channels])
        assert [(picture.size, picture.mode) for picture in pictures] == [((5, 4), mode)] * 2
        write_images(images[:, :channels], torch.tensor([0, 1]), tmp_path / mode)
        written = [np.array(Image.open(file)) for file in sorted((tmp_path / mode).iterdir())]
        assert all(np.array_equal(picture, kept) for picture, kept in zip(pictures, written, strict=True))


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 4), (2, 2, 1, 1)])
def test_what_makes_no_pictures(shape):
    with pytest.raises(UserError, match=r"^images: found the shape \(.*\), expected \(B, 1, H, W\) or \(B, 3, H, W\)$"):
        to_pil(torch.zeros(shape))
