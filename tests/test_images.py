"""Points as scatter pictures; grids and single pictures are in ``test_sampling.py``."""

import numpy as np
import torch
from PIL import Image

from genflow.images import save_grid, save_points


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
