"""The order of tokens and of the numbers inside them."""

import pytest
import torch

from genflow.layers.patches import patchify, unpatchify


@pytest.mark.parametrize("channels_last", [False, True])
def test_order_and_way_back(channels_last):
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    tokens = patchify(images, 2, channels_last)
    assert tokens.shape == (2, 4, 12)
    patch = images[1, :, 2:, :2]  # the third in raster order
    expected = patch.permute(1, 2, 0) if channels_last else patch
    assert tokens[1, 2].equal(expected.flatten())
    assert unpatchify(tokens, 2, 3, channels_last).equal(images)
