"""Networks that have no forward-mode derivative are told so in one line; other mistakes stay what they are."""

import pytest
import torch
from torch import nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.errors import UserError


class WithoutForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x.flatten(2).mT)[0].mT.view_as(x)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Own(Backbone):
    image_shape, num_classes, uses = (4, 2, 2), 0, ("time",)

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, condition, heads=("main",)):
        return {"main": self.layer(x) * condition.time.view(-1, 1, 1, 1)}


def moved(layer):
    x = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    return Own(layer).directional(x, Condition(time=torch.full((4,), 2.0)), torch.ones(3, 4, 2, 2))


def test_the_derivative_by_hand():
    outputs, derivative = moved(Applied(lambda x: 3 * x))
    assert derivative.shape == (3, 4, 2, 2)
    assert torch.allclose(derivative, outputs["main"][:3] / 2 + 3 * 2)  # time grows, x grows


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), Sequence(), Applied(WithoutForwardMode.apply)])
def test_no_forward_derivative_is_one_line(layer):
    with pytest.raises(UserError, match=r"^Own cannot be differentiated forward, .*derivative: central") as caught:
        moved(layer)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_other_mistakes_stay_what_they_are():
    with pytest.raises(RuntimeError, match="channels") as caught:
        moved(nn.Conv2d(3, 4, 1))
    assert not isinstance(caught.value, UserError)
