"""The multilayer perceptron of the toy: what its output depends on, and its derivative along the path."""

import pytest
import torch

from genflow.backbones import MLP
from genflow.backbones.mlp import StartSection
from genflow.condition import Condition

CLASSES = 3


def make_backbone(size=1, channels=5, num_classes=CLASSES):
    torch.manual_seed(0)
    return MLP(size, channels, width=32, layers=4, num_classes=num_classes).double()


def make_input(batch=4, size=1, channels=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64)


def condition_of(label=1, time=0.7, duration=0.4, batch=4):
    times = torch.tensor([time, duration], dtype=torch.float64).repeat(batch, 1)
    return Condition(labels=torch.full((batch,), label), time=times[:, 0], duration=times[:, 1])


@pytest.mark.parametrize(("size", "channels"), [(1, 5), (4, 2)])
def test_every_entry_sees_every_entry(size, channels):
    backbone, x = make_backbone(size, channels), make_input(1, size, channels)
    assert backbone(x, condition_of(batch=1))["main"].shape == x.shape == (1, *backbone.image_shape)
    jacobian = torch.autograd.functional.jacobian(lambda v: backbone(v, condition_of(batch=1))["main"], x)
    assert (jacobian.abs() > 1e-12).all()


def test_is_the_network_of_the_toy():
    """Seven linear maps of width 256 (docs/pmf.md, P15); time and duration are two further inputs."""
    backbone = MLP(1, 2)
    shapes = [tuple(layer.weight.shape) for layer in backbone.layers]
    assert shapes == [(256, 4), *[(256, 256)] * 5, (2, 256)]
    x = torch.randn(3, 2, 1, 1)
    hidden = torch.cat([x.flatten(1), torch.tensor([[0.7, 0.4]]).repeat(3, 1)], dim=1)
    for layer in backbone.layers[:-1]:
        hidden = (hidden @ layer.weight.T + layer.bias).clamp(min=0)
    expected = hidden @ backbone.layers[-1].weight.T + backbone.layers[-1].bias
    times = {"time": torch.full((3,), 0.7), "duration": torch.full((3,), 0.4)}
    sample = backbone(x, Condition(**times))["main"]
    assert torch.allclose(sample.flatten(1), expected, atol=1e-6)


def test_output_depends_on_class_time_and_duration():
    backbone, x = make_backbone(), make_input()
    plain = backbone(x, condition_of())["main"]
    for other in ({"label": 2}, {"label": CLASSES}, {"time": 0.6}, {"duration": 0.3}):
        assert (backbone(x, condition_of(**other))["main"] - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-6, other
    null = backbone(x, condition_of(label=CLASSES))["main"]
    assert torch.equal(backbone(x, condition_of(label=-1))["main"], null)


def test_unconditional_backbone_looks_at_no_label():
    backbone, condition = make_backbone(num_classes=0), condition_of()
    unlabelled = Condition(time=condition.time, duration=condition.duration)
    assert torch.equal(backbone(make_input(), unlabelled)["main"], backbone(make_input(), condition)["main"])


def test_mistakes():
    backbone, x = make_backbone(), make_input()
    with pytest.raises(ValueError, match=r"MLP needs Condition\.time"):
        backbone(x, Condition(labels=torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="MLP has no head 'auxiliary'"):
        backbone(x, condition_of(), ("auxiliary",))


@pytest.mark.parametrize("count", [4, 3])
def test_derivative_along_the_path(count):
    """Against a central difference, of all rows and of the first ones; none of these points lies near a kink."""
    backbone, x, direction = make_backbone(), make_input(), make_input(count, seed=2)
    outputs, derivative = backbone.directional(x, condition_of(), direction)
    assert outputs["main"].requires_grad and not derivative.requires_grad
    step = 1e-6

    def shifted(by):
        condition = condition_of(time=0.7 + by, duration=0.4 + by, batch=count)
        return backbone(x[:count] + by * direction, condition)["main"]

    difference = (shifted(step) - shifted(-step)) / (2 * step)
    assert (derivative - difference).abs().max() < 1e-7 * difference.abs().max()


def test_a_start_says_where_untrained_samples_lie():
    backbone = MLP(1, 2, width=16, layers=3, start=StartSection(mean=[0.5, -2.0], std=[0.1, 0.3]))
    x, times = torch.randn(4, 2, 1, 1), torch.ones(4)
    condition = Condition(time=times, duration=times)
    expected = torch.tensor([0.5, -2.0]).view(2, 1, 1) + torch.tensor([0.1, 0.3]).view(2, 1, 1) * x
    assert torch.equal(backbone(x, condition)["main"], expected)
    assert not any("start" in name for name in backbone.state_dict())
    torch.nn.init.ones_(backbone.layers[-1].bias)
    assert torch.allclose(backbone(x, condition)["main"], expected + 1)
    with pytest.raises(ValueError, match="start has 1 means and 2 stds for 2 channels"):
        MLP(1, 2, start=StartSection(mean=[0.5], std=[0.1, 0.3]))
