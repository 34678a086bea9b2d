"""The order of tokens and of the numbers inside them; derivatives, graphs and counts of what cuts images up."""

import pytest
import torch
from torch import nn

from genflow.analysis.flops import count_macs
from genflow.layers.patches import as_tokens, patchify, unpatchify

CHANNELS, SIDE = 3, 8

ORDERS = pytest.mark.parametrize("channels_last", [False, True])


def images(height=SIDE, width=SIDE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, CHANNELS, height, width, generator=generator, dtype=torch.float64)


def permuted(x, size, channels_last):
    """patchify by shapes and the numbers of axes."""
    rows, columns = x.shape[2] // size, x.shape[3] // size
    cells = x.reshape(len(x), CHANNELS, rows, size, columns, size)
    cells = cells.permute(0, 2, 4, 3, 5, 1) if channels_last else cells.permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(len(x), rows * columns, CHANNELS * size**2)


def permuted_back(tokens, size, channels_last):
    """unpatchify likewise."""
    side = SIDE // size
    if channels_last:
        cells = tokens.reshape(len(tokens), side, side, size, size, CHANNELS).permute(0, 5, 1, 3, 2, 4)
    else:
        cells = tokens.reshape(len(tokens), side, side, CHANNELS, size, size).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(len(tokens), CHANNELS, SIDE, SIDE)


@ORDERS
def test_order_and_way_back(channels_last):
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    tokens = patchify(images, 2, channels_last)
    assert tokens.shape == (2, 4, 12)
    patch = images[1, :, 2:, :2]  # the third in raster order
    expected = patch.permute(1, 2, 0) if channels_last else patch
    assert tokens[1, 2].equal(expected.flatten())
    assert unpatchify(tokens, 2, 3, channels_last).equal(images)


@ORDERS
@pytest.mark.parametrize("size", [1, 2, SIDE])
def test_equals_permuted_axes(size, channels_last):
    tokens = patchify(images(), size, channels_last)
    assert tokens.equal(permuted(images(), size, channels_last))
    assert unpatchify(tokens, size, CHANNELS, channels_last).equal(permuted_back(tokens, size, channels_last))
    wide = images(size, 3 * size)
    assert patchify(wide, size, channels_last).equal(permuted(wide, size, channels_last))


def test_sizes_that_do_not_fit_are_refused():
    for tokens, channels in ((torch.zeros(1, 8, 12), 3), (torch.zeros(1, 9, 12), 2)):
        with pytest.raises(RuntimeError, match="mismatch"):
            unpatchify(tokens, 2, channels)
    with pytest.raises(RuntimeError, match="can't divide"):
        patchify(torch.zeros(1, 3, 8, 7), 2)


def test_tokens_of_maps():
    found = as_tokens(images())
    assert found.equal(images().flatten(2).mT) and found[1, 3 * SIDE + 5].equal(images()[1, :, 3, 5])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch scripts functions of its own at the first jvp
@ORDERS
def test_forward_mode_derivative(channels_last):
    """Both maps are linear, so a tangent goes where a value goes; the gradient goes back."""
    x, tangent = images(), images(seed=1)
    _, moved = torch.func.jvp(lambda x: patchify(x, 2, channels_last), (x,), (tangent,))
    assert moved.equal(permuted(tangent, 2, channels_last))
    _, back = torch.func.jvp(lambda x: unpatchify(x, 2, CHANNELS, channels_last), (moved,), (moved,))
    assert back.equal(tangent)
    (gradient,) = torch.func.vjp(lambda x: patchify(x, 2, channels_last), x)[1](moved)
    assert gradient.equal(tangent)


def test_compiles_to_one_graph():
    """For any number of images once the second size of a batch is seen."""

    def there_and_back(x):
        first = patchify(x, 2)
        last = patchify(x, 2, channels_last=True)
        return first, last, unpatchify(first, 2, CHANNELS), unpatchify(last, 2, CHANNELS, channels_last=True)

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    for batch in (images(), images().repeat(2, 1, 1, 1), images()[:1].repeat(3, 1, 1, 1)):
        for found, expected in zip(compiled(batch), there_and_back(batch), strict=True):
            assert found.equal(expected)


@ORDERS
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_is_counted(device, channels_last):
    """Nothing for the patches themselves: 16 of them through a map of 12 numbers."""
    features = CHANNELS * 2**2
    linear = nn.Linear(features, features, device=device)
    x = torch.zeros(1, CHANNELS, SIDE, SIDE, device=device)

    def mapped(x):
        return unpatchify(linear(patchify(x, 2, channels_last)), 2, CHANNELS, channels_last)

    assert count_macs(linear, (x,), mapped).by_operator == {"linear": 16 * features**2}
