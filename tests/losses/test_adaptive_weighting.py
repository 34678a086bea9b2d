"""Squared error per sample and its adaptive weighting (docs/biflow.md, B14)."""

import pytest
import torch

from genflow.losses import AdaptiveWeighting, SquaredError
from genflow.losses.base import Loss


def pair(batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, batch, 2, 3, 3, generator=generator, dtype=torch.float64)
    return prediction.requires_grad_(), target


class Scaled(Loss):
    """A loss times a constant."""

    def __init__(self, loss, factor):
        super().__init__()
        self.loss, self.factor = loss, factor

    def forward(self, prediction, target):
        return self.factor * self.loss(prediction, target)


def test_squared_error_per_sample():
    prediction, target = pair()
    by_hand = [
        sum((p - t) ** 2 for p, t in zip(a.flatten(), b.flatten(), strict=True))
        for a, b in zip(prediction, target, strict=True)
    ]
    assert torch.allclose(SquaredError()(prediction, target), torch.stack(by_hand))
    assert torch.allclose(SquaredError("mean")(prediction, target), torch.stack(by_hand) / 18)
    assert not SquaredError()(target, target).any()


def test_squared_error_of_half_precision_is_computed_in_float32():
    prediction, target = (tensor.detach().bfloat16() for tensor in pair())
    found = SquaredError("mean")(prediction, target)
    assert found.dtype == torch.float32
    exact = SquaredError("mean")(prediction.double(), target.double())
    assert torch.allclose(found.double(), exact, rtol=1e-6)
    assert SquaredError()(prediction, target.double()).dtype == torch.float64


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_value_and_gradient(power):
    prediction, target = pair()
    weighted = AdaptiveWeighting(SquaredError(), power, offset=0.3)(prediction, target)
    distance = SquaredError()(prediction, target)
    weight = (distance.detach() + 0.3) ** -power
    assert torch.allclose(weighted, distance * weight, rtol=1e-14)
    found, expected = (torch.autograd.grad(term.sum(), prediction)[0] for term in (weighted, distance * weight))
    assert torch.allclose(found, expected, rtol=1e-14)


def test_samples_do_not_interact():
    prediction, target = pair()
    loss = AdaptiveWeighting(SquaredError())
    alone = torch.cat([loss(prediction[i : i + 1], target[i : i + 1]) for i in range(len(target))])
    assert torch.equal(loss(prediction, target), alone)


def test_a_thousandfold_term_has_nearly_the_same_gradient():
    prediction, target = pair()
    gradients = [
        torch.autograd.grad(AdaptiveWeighting(Scaled(SquaredError(), f))(prediction, target).sum(), prediction)[0]
        for f in (1.0, 1000.0)
    ]
    assert torch.allclose(gradients[0], gradients[1], rtol=2e-3)
    plain = [
        torch.autograd.grad(Scaled(SquaredError(), f)(prediction, target).sum(), prediction)[0] for f in (1.0, 1000.0)
    ]
    assert torch.allclose(1000 * plain[0], plain[1])


def test_equal_images_give_zero_and_finite_gradients():
    prediction, _ = pair()
    loss = AdaptiveWeighting(SquaredError())(prediction, prediction.detach())
    assert not loss.any()
    assert not torch.autograd.grad(loss.sum(), prediction)[0].any()
