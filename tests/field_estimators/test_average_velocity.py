"""Average velocities: known paths, preconditioners, the time floor, ways to differentiate, rows, and precision."""

import math
from dataclasses import replace

import pytest
import torch

from genflow.backbones.base import Backbone
from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.condition import Condition
from genflow.field_estimators import AverageVelocity
from genflow.time_samplers.base import Times

BATCH, CLASSES, BOTH = 5, 3, ("main", "auxiliary")
SHAPE = (2, 4, 4)
FLOOR = 0.05


class Formula(Backbone):
    """A backbone whose output is a function of the input, the time t and the time r."""

    image_shape = SHAPE
    num_classes = 0

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, condition, heads=("main",)):
        t, h = condition.time.view(-1, 1, 1, 1), condition.duration.view(-1, 1, 1, 1)
        return {"main": self.function(x, t, t - h)}


def numbers(seed, count=BATCH):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)


def times_of(t, r):
    """Times in float64; those that are equal are rows of flow matching."""
    t, r = (torch.tensor(values, dtype=torch.float64) for values in (t, r))
    return Times(t, r, t == r)


MIXED = times_of([0.9, 0.4, 0.7, 0.2, 0.95], [0.1, 0.4, 0.3, 0.2, 0.0])


def by_row(values):
    return values.view(-1, 1, 1, 1)


# Known paths


def growing(z, t, r):
    """The average velocity of dz/dt = z^2, whose path is z(r) = z / (1 + (t - r) z)."""
    return z.square() / (1 + (t - r) * z)


@pytest.mark.parametrize("derivative", ["forward", "central", "with_graph"])
@pytest.mark.parametrize("prediction", ["x", "u"])
@pytest.mark.parametrize("moving_rows_only", [True, False])
def test_the_identity_of_meanflow_gives_the_velocity_of_the_path(prediction, derivative, moving_rows_only):
    """V = v = z^2 for an average velocity that is exact; it differs from u wherever r < t."""
    z = numbers(0).abs() + 0.2
    outputs = {"u": growing, "x": lambda z, t, r: z - t * growing(z, t, r)}
    field = AverageVelocity(prediction, derivative=derivative, moving_rows_only=moving_rows_only)
    fields = field(Formula(outputs[prediction]), z, MIXED, Condition(), z.square())
    assert torch.allclose(fields.average, growing(z, by_row(MIXED.t), by_row(MIXED.r)), atol=1e-12)
    # A difference of two evaluations is wrong by about the square of its step.
    assert (fields.compound - z.square()).abs().max() < (1e-3 if derivative == "central" else 1e-11)
    apart = (fields.average - z.square()).abs().amax(dim=(1, 2, 3))
    assert (apart[~MIXED.equal] > 0.1).all() and (apart[MIXED.equal] < 1e-12).all()
    assert fields.auxiliary is None


def edm(t):
    """That of noise sigma = t / (1 - t) on data of standard deviation 0.5, whose input is z / (1 - t)."""
    sigma = t / (1 - t)
    return 0.25 / (sigma**2 + 0.25) / (1 - t), 0.5 * sigma / (sigma**2 + 0.25).sqrt()


#: skip(t) and out(t), and out(1); skip(1) is 0.
PRECONDITIONERS = {
    "none": (lambda t: (0 * t, 1 + 0 * t), 1.0),
    "linear": (lambda t: (1 - t, t), 1.0),
    "edm": (edm, 0.5),
    "scm": (lambda t: (torch.cos(math.pi / 2 * t), -0.5 * torch.sin(math.pi / 2 * t)), -0.5),
}


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
def test_preconditioners(preconditioner):
    z, output, ones = numbers(0), numbers(1), torch.ones(BATCH, dtype=torch.float64)
    coefficients, last = PRECONDITIONERS[preconditioner]
    skip, out = coefficients(by_row(MIXED.t))
    field = AverageVelocity(preconditioner=preconditioner)
    expected = (z - skip * z - out * output) / by_row(MIXED.t)
    assert torch.allclose(field.convert(output, z, MIXED.t), expected, atol=1e-12)
    assert torch.allclose(field.convert(output, z, ones), z - last * output, atol=1e-12)


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
def test_straight_paths_to_one_image(preconditioner):
    """Where all data are one image, u = v = e - x, so du/dt is 0, whatever is left to the network to predict."""
    image, noise = numbers(1, 1), numbers(2)

    def output(z, t, r):
        skip, out = PRECONDITIONERS[preconditioner][0](t)
        return (image - skip * z) / out

    z = (1 - by_row(MIXED.t)) * image + by_row(MIXED.t) * noise
    field = AverageVelocity(preconditioner=preconditioner)
    conditional = field.conditional(z, image, MIXED.t)
    assert torch.allclose(conditional, noise - image, atol=1e-12)
    fields = field(Formula(output), z, MIXED, Condition(), conditional)
    assert (fields.average - conditional).abs().max() < 1e-11
    assert (fields.compound - conditional).abs().max() < 1e-10


def test_a_preconditioner_needs_a_predicted_image():
    with pytest.raises(ValueError, match="preconditioner edm is for prediction x, found prediction u"):
        AverageVelocity("u", "edm")


def test_below_the_time_floor():
    """There z - x is divided by the floor, whose derivative is 0."""
    times = times_of([0.04, 0.02, 0.01, 0.0, 0.06], [0.01, 0.0, 0.01, 0.0, 0.01])
    z, image, tangent = numbers(0), numbers(1, 1), numbers(2)
    field = AverageVelocity(time_floor=FLOOR)
    fields = field(Formula(lambda z, t, r: image + 0 * z), z, times, Condition(), tangent)
    average = (z - image) / by_row(times.t).clamp(min=FLOOR)
    assert torch.allclose(fields.average, average, atol=1e-12)
    assert torch.allclose(field.conditional(z, image, times.t), average, atol=1e-12)
    moved = torch.where(by_row(times.t < FLOOR), tangent / FLOOR, (tangent - average) / by_row(times.t))
    assert torch.allclose(fields.compound, average + by_row(times.t - times.r) * moved, atol=1e-12)
    assert not torch.allclose(fields.compound[0], average[0], atol=1e-3)


# On the transformer


def make_network():
    torch.manual_seed(0)
    options = {"class_tokens": 1, "guidance_tokens": 1, "interval_tokens": 1, "time_tokens": 1, "bottleneck": 3}
    sizes = {"channels": 2, "num_classes": CLASSES, "head_depth": 1, "auxiliary_depth": 1}
    network = PixelTransformer(4, 2, 16, 2, 2, **sizes, **options).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def told(count=BATCH):
    """A condition of its own for every row."""
    interval = torch.tensor([[0.1, 0.7]], dtype=torch.float64) + torch.arange(count).view(-1, 1) / 20
    scale = torch.linspace(1, 3, count, dtype=torch.float64)
    return Condition(labels=torch.arange(count) % CLASSES, guidance=scale, interval=interval)


def fields_and_gradients(field, network=None, times=MIXED):
    """The fields, and the gradients of a loss of both heads in which the compound velocity stands for the main one."""
    network = network or make_network()
    fields = field(network, numbers(0), times, told(), numbers(1), network.heads)
    loss = fields.compound.square().sum() + fields.auxiliary.pow(4).sum()
    names, parameters = zip(*network.named_parameters(), strict=True)
    return fields, dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_equal_results(one, other, limit=1e-10):
    for name in ("average", "compound", "auxiliary"):
        found, expected = getattr(one[0], name), getattr(other[0], name)
        assert (found - expected).abs().max() < limit * expected.abs().max(), name
    for name, gradient in other[1].items():
        assert gradient.any() and (one[1][name] - gradient).abs().max() < limit * gradient.abs().max(), name


@pytest.mark.parametrize(
    "options",
    [
        {"moving_rows_only": False},
        {"derivative": "with_graph"},
        {"derivative": "with_graph", "moving_rows_only": False},
    ],
    ids=str,
)
def test_ways_to_the_same_result(options):
    assert_equal_results(fields_and_gradients(AverageVelocity(**options)), fields_and_gradients(AverageVelocity()))


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
@pytest.mark.parametrize("moving_rows_only", [True, False])
def test_central_differences_are_near(preconditioner, moving_rows_only):
    central = AverageVelocity("x", preconditioner, derivative="central", moving_rows_only=moving_rows_only)
    exact = AverageVelocity("x", preconditioner)
    assert_equal_results(fields_and_gradients(central), fields_and_gradients(exact), 5e-3)


def test_the_derivative_carries_no_gradient():
    network = make_network()
    fields = AverageVelocity()(network, numbers(0), MIXED, told(), numbers(1))
    weight, parameters = numbers(3), [*network.trunk.parameters(), *network.main.parameters()]
    found, expected = (
        torch.autograd.grad((weight * velocity).sum(), parameters, retain_graph=True)
        for velocity in (fields.compound, fields.average)
    )
    assert not torch.allclose(fields.compound, fields.average, atol=1e-3)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("moving_rows_only", [True, False])
def test_rows_are_what_they_are_alone(moving_rows_only):
    """In their own order, though rows that move are computed first."""
    network, condition = make_network(), told()
    field = AverageVelocity(moving_rows_only=moving_rows_only)
    fields = field(network, numbers(0), MIXED, condition, numbers(1), BOTH)
    for row in range(BATCH):
        part = slice(row, row + 1)
        times = Times(MIXED.t[part], MIXED.r[part], MIXED.equal[part])
        alone = field(network, numbers(0)[part], times, condition.rows(part), numbers(1)[part], BOTH)
        for name in ("average", "compound", "auxiliary"):
            assert torch.allclose(getattr(fields, name)[part], getattr(alone, name), atol=1e-11), (row, name)
    assert torch.equal(fields.compound[MIXED.equal], fields.average[MIXED.equal])
    u = field.velocity(network, numbers(0), MIXED.t, MIXED.r, condition, BOTH)
    assert torch.allclose(fields.average, u["main"], atol=1e-11)
    assert torch.allclose(fields.auxiliary, u["auxiliary"], atol=1e-11)


@pytest.mark.parametrize(("moving_rows_only", "rows"), [(True, [3]), (False, [5])])
def test_only_rows_that_move_are_differentiated(moving_rows_only, rows, monkeypatch):
    network, seen, original = make_network(), [], PixelTransformer.directional

    def spy(self, x, condition, direction, heads):
        seen.append(len(direction))
        return original(self, x, condition, direction, heads)

    monkeypatch.setattr(PixelTransformer, "directional", spy)
    field = AverageVelocity(moving_rows_only=moving_rows_only)
    fields_and_gradients(field, network)
    assert seen == rows
    still = times_of([0.9, 0.4, 0.7, 0.2, 0.6], [0.9, 0.4, 0.7, 0.2, 0.6])
    fields, _ = fields_and_gradients(field, network, still)
    assert torch.equal(fields.compound, fields.average)
    assert len(seen) == (1 if moving_rows_only else 2)


@pytest.mark.parametrize("derivative", ["forward", "central", "with_graph"])
@pytest.mark.parametrize("prediction", ["x", "u"])
def test_velocities_are_float32_under_autocast(prediction, derivative):
    network, field = make_network().float(), AverageVelocity(prediction, derivative=derivative)
    z, tangent = numbers(0).float(), numbers(1).float()
    times = Times(MIXED.t.float(), MIXED.r.float(), MIXED.equal)
    exact = field(network, z, times, told(), tangent, BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(z, replace(told(), duration=times.t - times.r))["main"]
        velocity = field.velocity(network, z, times.t, times.r, told())["main"]
        found = field(network, z, times, told(), tangent, BOTH)
    assert output.dtype == torch.bfloat16
    # The conversion itself loses nothing.
    assert torch.equal(velocity, output.float() if prediction == "u" else (z - output.float()) / by_row(times.t))
    for name in ("average", "compound", "auxiliary"):
        value, expected = getattr(found, name), getattr(exact, name)
        assert value.dtype == torch.float32
        limit = 0.3 if derivative == "central" and name == "compound" else 0.03
        assert 1e-4 < (value - expected).norm() / expected.norm() < limit, name
