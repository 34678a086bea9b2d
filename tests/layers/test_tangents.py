"""Layers on a pair of value and tangent: against forward-mode differentiation of the plain layer."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from genflow.layers.embeddings import axial_rotation
from genflow.layers.tangents import carry, derivative
from genflow.layers.transformer import TransformerLayer

BATCH, WIDTH, HEADS, SIDE = 4, 16, 2, 3
ANGLES = axial_rotation(SIDE, WIDTH // HEADS).double()


def make_layer(gated=True):
    torch.manual_seed(0)
    layer = TransformerLayer(WIDTH, HEADS, qk_norm=True, gated=gated, multiple=8).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def sequence(count=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIDE**2, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch scripts functions of its own at the first jvp
@pytest.mark.parametrize("count", [BATCH, 3, 1])
@pytest.mark.parametrize("gated", [True, False])
def test_tangent_is_the_directional_derivative(gated, count):
    layer, x, tangent = make_layer(gated), sequence(), sequence(count, seed=1)
    _, moved = carry(layer, x, tangent, ANGLES)
    with sdpa_kernel(SDPBackend.MATH):
        _, expected = torch.func.jvp(lambda x: layer(x, angles=ANGLES), (x[:count],), (tangent,))
    assert moved.shape == tangent.shape
    assert (moved - expected).abs().max() < 1e-10 * expected.abs().max()
    step = 1e-5
    ahead, behind = (layer(x[:count] + by * tangent, angles=ANGLES) for by in (step, -step))
    difference = (ahead - behind) / (2 * step)
    assert (moved - difference).abs().max() < 1e-6 * difference.abs().max()


@pytest.mark.parametrize("count", [None, 0, 3])
@pytest.mark.parametrize("gated", [True, False])
def test_value_and_gradients_are_those_of_the_layer(gated, count):
    layer, x, weight = make_layer(gated), sequence().requires_grad_(), sequence(seed=2)
    inputs = [x, *layer.parameters()]
    plain = layer(x, angles=ANGLES)
    expected = torch.autograd.grad((weight * plain).sum(), inputs)
    value, moved = carry(layer, x, None if count is None else sequence(count, seed=1), ANGLES)
    assert (moved is None) if count is None else (moved.shape == (count, *x.shape[1:]))
    assert torch.equal(value, plain)
    gradients = torch.autograd.grad((weight * value).sum(), inputs)
    for found, wanted in zip(gradients, expected, strict=True):
        assert wanted.any() and torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def kept_for_backward(function):
    """The shapes of the tensors that a graph keeps."""
    kept = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sorted(kept)


def test_nothing_of_the_tangent_is_in_the_graph():
    layer, x, tangent = make_layer(), sequence().requires_grad_(), sequence(seed=1).requires_grad_()
    value, moved = carry(layer, x, tangent, ANGLES)
    assert value.requires_grad and not moved.requires_grad
    (gradient,) = torch.autograd.grad(value.sum(), [tangent], allow_unused=True)
    assert gradient is None
    plain = kept_for_backward(lambda: layer(x, angles=ANGLES))
    assert plain and kept_for_backward(lambda: carry(layer, x, tangent, ANGLES)) == plain


def test_under_autocast_the_value_is_the_layers_and_the_tangent_close():
    layer, x, tangent, angles = make_layer().float(), sequence().float(), sequence(3, seed=1).float(), ANGLES.float()
    _, exact = carry(layer, x, tangent, angles)
    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(x, angles=angles)
        value, moved = carry(layer, x, tangent, angles)
    assert torch.equal(value, plain) and value.dtype == moved.dtype == torch.float32
    assert 1e-5 < (moved - exact).norm() / exact.norm() < 0.02


def test_derivative_of_a_function_has_no_graph():
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    x, y = sequence(), sequence(seed=1)
    found = derivative(lambda x, y: scale * x.square() * y, (x, y), (y, torch.ones_like(y)))
    assert not found.requires_grad
    assert torch.allclose(found, 3 * (2 * x * y * y + x.square()), atol=1e-12)
