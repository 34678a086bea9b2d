"""One update: micro-batches, precision, clipping, and the stop before a non-finite update."""

import copy
import json

import pytest
import torch

from genflow.config.sections import TrainSection
from genflow.draws import Draws
from genflow.engine.loop import AutocastOptimWrapper, TrainingDiverged, UpdateLoop, seed_step
from genflow.engine.signals import StopRequest
from genflow.engine.watchdog import Watchdog
from genflow.methods.base import Method


class Linear(Method):
    """A method in miniature: one weight vector, squared error on noisy inputs."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.updates = 0

    def after_update(self):
        self.updates += 1

    def forward(self, images, labels, draws):
        noisy = images + draws.normal("noise", (4,))
        error = (noisy @ self.weight - labels).square()
        return {"loss": error.mean(), "error": error.mean().detach()}


class Runner:
    """What the loop asks of its runner."""

    def __init__(self, model, precision="float32", clip=None):
        self.model = model
        self.stop, self.watchdog = StopRequest(), Watchdog(600)
        self.optim_wrapper = AutocastOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), precision, clip)


def make_batch(size=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 4, generator=generator)
    return {"images": images, "labels": torch.arange(size), "draws": Draws(0, torch.arange(size))}


def make_loop(micro_batches=1, **options):
    return UpdateLoop(
        Runner(Linear(), **options), torch.utils.data.DataLoader([0]), TrainSection(1, micro_batches), seed=0
    )


def test_update_is_gradient_descent():
    loop, batch = make_loop(), make_batch()
    model = copy.deepcopy(loop.runner.model)
    values = loop.update(batch)
    loss = model(**batch)["loss"]
    loss.backward()
    assert values["loss"] == loss.item() == values["error"]
    assert values["grad_norm"] == pytest.approx(model.weight.grad.norm().item(), rel=1e-6)
    assert torch.allclose(loop.runner.model.weight, 1 - 0.1 * model.weight.grad)


@pytest.mark.parametrize("micro_batches", [2, 3, 4, 6])
def test_micro_batches_change_nothing(micro_batches):
    whole, parts = make_loop(), make_loop(micro_batches)
    expected, found = whole.update(make_batch()), parts.update(make_batch())
    assert found == pytest.approx(expected, rel=1e-6)
    assert parts.runner.model.updates == 1
    assert torch.allclose(parts.runner.model.weight, whole.runner.model.weight, rtol=1e-6)


def test_clipping_limits_the_step_and_reports_the_norm_before():
    free, clipped = make_loop(), make_loop(clip=0.5)
    before, after = free.update(make_batch()), clipped.update(make_batch())
    assert after["grad_norm"] == before["grad_norm"] > 0.5
    step = (clipped.runner.model.weight - 1).norm().item()
    assert step == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_bfloat16_autocast_on_this_device():
    loop = make_loop(precision="bfloat16")
    seen = []
    loop.runner.model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    values = loop.update(make_batch())
    assert seen == [True]
    assert values["loss"] == pytest.approx(make_loop().update(make_batch())["loss"], rel=0.05)
    assert values["loss"] != make_loop().update(make_batch())["loss"]
    assert loop.runner.model.weight.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stops_before_a_non_finite_update_and_names_the_term(value):
    loop, batch = make_loop(), make_batch()
    batch["images"][3, 1] = value
    with pytest.raises(TrainingDiverged, match=r"update 1: not finite: error = (nan|inf); first such gradient: weight"):
        loop.update(batch)
    assert loop.runner.model.weight.tolist() == [1.0] * 4


def test_names_the_parameter_whose_gradient_is_not_finite():
    class Two(Linear):
        def __init__(self):
            super().__init__()
            self.second = torch.nn.Parameter(torch.ones(1))

        def forward(self, images, labels, draws):
            loss = self.weight.square().sum() + (self.second - 1).abs().sum().sqrt()
            return {"loss": loss}

    loop = UpdateLoop(Runner(Two(), clip=1.0), torch.utils.data.DataLoader([0]), TrainSection(1), seed=0)
    with pytest.raises(TrainingDiverged, match="first such gradient: second"):
        loop.update(make_batch())


def test_stops_when_only_a_gradient_is_not_finite():
    class Cusp(Linear):
        def forward(self, images, labels, draws):
            loss = (self.weight - 1).abs().sum().sqrt()  # 0 with an infinite slope
            return {"loss": loss}

    loop = UpdateLoop(Runner(Cusp()), torch.utils.data.DataLoader([0]), TrainSection(1), seed=0)
    with pytest.raises(TrainingDiverged, match="grad_norm = nan; first such gradient: weight"):
        loop.update(make_batch())


def test_global_generators_are_a_function_of_seed_and_step():
    draws = []
    for step in (3, 4, 3):
        seed_step(7, step)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[2] != draws[1]


def test_values_survive_json_to_the_last_bit():
    values = make_loop().update(make_batch())
    assert json.loads(json.dumps(values)) == values
