"""From noise to data along a velocity: orders of the solvers, guidance in its interval, steps, users' mistakes."""

import itertools
import math

import pytest
import torch

from genflow.backbones.base import Backbone
from genflow.codecs import Identity
from genflow.condition import Condition
from genflow.errors import UserError
from genflow.field_estimators import AverageVelocity, InstantaneousVelocity
from genflow.generators.velocity import AverageVelocityGenerator, InstantaneousVelocityGenerator

CLASSES = 3


class Formula(Backbone):
    """A backbone whose output is a function of the input and the condition; keeps the conditions of its calls."""

    image_shape = (2, 1, 1)

    def __init__(self, function, num_classes=CLASSES):
        super().__init__()
        self.function = function
        self.num_classes = num_classes
        self.calls = []
        self.weight = torch.nn.Parameter(torch.zeros(()))  # a generator is where its weights are

    def forward(self, x, condition, heads=("main",)):
        self.calls.append(condition)
        return {"main": self.function(x, condition)}


def times_of(condition):
    return condition.time.view(-1, 1, 1, 1)


def growth(z, condition):
    """dz/dt = (1 + 2t) z, whose solution at 0 is exp(-2) times that at 1."""
    return (1 + 2 * times_of(condition)) * z


def by_class(z, condition):
    """A constant velocity: the label's number."""
    return condition.labels.view(-1, 1, 1, 1) * torch.ones_like(z)


def make_instantaneous(function, prediction="v", noise_scale=1.0, **options):
    network = Formula(function)
    return InstantaneousVelocityGenerator(
        network, InstantaneousVelocity(prediction), Identity(1, 2), noise_scale, **options
    )


def make_input(batch=2):
    return torch.randn(batch, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def condition_of(label=1, scale=1.0, batch=2):
    return Condition(labels=torch.full((batch,), label), guidance=torch.full((batch,), scale))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_the_solver(solver, order):
    noise, errors = make_input(), []
    for steps in (64, 128, 256):  # whose times float32 holds exactly
        generator = make_instantaneous(growth, steps=steps, solver=solver)
        sample = generator(noise, condition_of())
        assert len(generator.network.calls) == generator.nfe == {"euler": steps, "heun": 2 * steps - 1}[solver]
        errors.append((sample - math.exp(-2) * noise).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)
    assert errors[-1] < 1e-2**order


def test_evaluations_are_told_their_times():
    generator = make_instantaneous(growth, steps=4, solver="heun")
    generator(make_input(), condition_of())
    told = [call.time[0].item() for call in generator.network.calls]
    assert told == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert not any(call.duration.any() for call in generator.network.calls)


def test_one_step_of_a_predicted_image_is_that_image():
    generator = make_instantaneous(lambda z, condition: 0.3 * torch.ones_like(z), "x", 2.0, steps=1)
    assert (generator(make_input(), condition_of()) - 0.3).abs().max() < 1e-7


def test_noise_is_scaled():
    still = make_instantaneous(lambda z, condition: torch.zeros_like(z), noise_scale=3.0, steps=2)
    assert torch.equal(still(make_input(), condition_of()), 3 * make_input())


def test_guidance_inside_its_interval_only():
    """Classes pull with their number, "no class" with 3: label 1 at scale 4 gives 3 + 4 (1 - 3) = -5."""
    generator = make_instantaneous(by_class, steps=4, solver="euler", default_interval=(0.3, 0.8))
    noise = make_input()
    sample = generator(noise, condition_of(scale=4.0))
    # Of the times 1, 3/4, 1/2 and 1/4 two are guided.
    assert (noise - sample - (2 * 1 + 2 * -5) / 4).abs().max() < 1e-6
    assert [len(call.labels) for call in generator.network.calls] == [2, 4, 4, 2]
    scales = torch.tensor([1.0, 4.0])
    mixed = generator(noise, Condition(labels=torch.tensor([1, 1]), guidance=scales))
    assert (noise[0] - mixed[0] - 1).abs().max() < 1e-6 and torch.equal(mixed[1], sample[1])
    plain = generator(noise, condition_of())
    assert (noise - plain - 1).abs().max() < 1e-6
    assert [len(call.labels) for call in generator.network.calls[-4:]] == [2] * 4


def make_average(function, prediction="u", **options):
    network = Formula(function)
    return AverageVelocityGenerator(network, AverageVelocity(prediction), Identity(1, 2), 1.0, **options)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_exact_average_velocities_lead_to_the_end_in_any_number_of_steps(steps):
    def average(z, condition):
        """Of :func:`growth`: the path from t to r is z(r) = z exp(r + r^2 - t - t^2)."""
        t, h = times_of(condition), condition.duration.view(-1, 1, 1, 1)
        r = t - h
        return z * (1 - torch.exp((r + r**2 - t - t**2).double())) / h

    generator = make_average(average, steps=steps)
    sample = generator(make_input(), condition_of())
    assert (sample - math.exp(-2) * make_input()).abs().max() < 1e-6
    told = [(call.time[0].item(), call.duration[0].item()) for call in generator.network.calls]
    assert told == [(1 - step / steps, 1 / steps) for step in range(steps)]
    assert generator.nfe == steps


def test_an_average_velocity_is_told_scale_and_interval():
    generator = make_average(growth, default_guidance=2.5, default_interval=(0.2, 0.6))
    generator.sample(torch.tensor([1, 2]), seed=0)
    generator.set_sampling(interval=(0.1, 0.9))
    generator.sample(torch.tensor([1, 2]), seed=0, guidance=3.0)
    first, second = generator.network.calls
    assert first.guidance.tolist() == [2.5, 2.5] and second.guidance.tolist() == [3.0, 3.0]
    assert torch.allclose(first.interval, torch.tensor([[0.2, 0.6]]).repeat(2, 1))
    assert torch.allclose(second.interval, torch.tensor([[0.1, 0.9]]).repeat(2, 1))


def test_steps_and_interval_of_sampling():
    generator = make_instantaneous(growth, steps=5, default_interval=(0.2, 0.6))
    generator.set_sampling(steps=3)
    assert (generator.steps, generator.nfe, generator.interval) == (3, 5, (0.2, 0.6))
    with pytest.raises(UserError, match="steps: found 0, expected at least 1"):
        generator.set_sampling(steps=0)
    for interval in ((0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(UserError, match=r"interval: found .*, expected two times with 0 <= start <= end <= 1"):
            generator.set_sampling(interval=interval)


def test_scales_that_have_no_meaning():
    with pytest.raises(UserError, match=r"guidance: found 0.5, expected at least 1"):
        make_average(growth).condition(torch.tensor([0]), 0.5)
    with pytest.raises(ValueError, match=r"default_guidance is 0.5, 1 means no guidance"):
        make_average(growth, default_guidance=0.5)
    unguided = make_average(growth, guided=False)
    with pytest.raises(UserError, match=r"guidance: found 2.0, expected none: this model was not trained with a scale"):
        unguided.condition(torch.tensor([0]), 2.0)
    assert unguided.condition(torch.tensor([0]), 1).guidance.tolist() == [1.0]
    with pytest.raises(ValueError, match=r"default_guidance is 2.0, but no scale can be asked for"):
        make_average(growth, guided=False, default_guidance=2.0)
