"""Every distance: derivatives, zero between equal samples, what it measures."""

import pytest
import torch

from genflow.distribution_distances import (
    DriftDistance,
    FrechetDistance,
    KernelDistance,
    SinkhornDivergence,
    SlicedWasserstein,
)
from genflow.draws import Draws
from genflow.field_estimators.drifting_field import DriftingField

ONE = Draws(0, torch.zeros(1, dtype=torch.int64))
WIDTH = 3
DISTANCES = {
    "frechet_average": lambda: FrechetDistance(decay=0.5),
    "frechet_queue": lambda: FrechetDistance("queue", queue=40),
    "frechet_batch": lambda: FrechetDistance("batch"),
    "gaussian": KernelDistance,
    "laplace": lambda: KernelDistance("laplace"),
    "energy": lambda: KernelDistance("energy"),
    "landmarks": lambda: KernelDistance(landmarks=12),
    "sliced": SlicedWasserstein,
    "sinkhorn": lambda: SinkhornDivergence(temperature=0.2, iterations=200),
}


def points(seed, count=16, positions=2, shift=0.0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(count, positions, WIDTH, generator=generator, dtype=dtype)


def begun(make, positions=2):
    distance = make()
    distance.begin(positions, WIDTH)
    return distance


@pytest.mark.parametrize("name", DISTANCES)
def test_derivatives_are_those_of_finite_differences(name):
    distance = begun(DISTANCES[name])
    distance.observe(points(1), points(2, shift=0.5))
    count = 6 if name == "sinkhorn" else 16
    real, generated = points(3, count, shift=0.5), points(4, count).requires_grad_()
    unit = SinkhornDivergence.unit
    if name == "sinkhorn":  # its unit counts as a constant
        fixed = unit(generated.detach().transpose(0, 1), real.transpose(0, 1))
        distance.unit = lambda x, y: fixed
    assert torch.autograd.gradcheck(lambda x: distance(x, real, ONE), generated, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_what_is_further_away_has_a_larger_distance(name):
    found = []
    for shift in (0.0, 0.5, 2.0):
        distance, real = begun(DISTANCES[name]), points(2, 64)
        distance.observe(points(1, 64, shift=shift), real)
        found.append(float(distance(points(3, 64, shift=shift), real, ONE)))
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("name", ["sliced", "sinkhorn"])
def test_equal_samples_have_no_distance(name):
    same = points(0)
    assert float(begun(DISTANCES[name])(same, same.flip(0), ONE)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_gaussians_in_closed_form():
    # Of N(a, A) and N(b, B) with commuting A, B: |a - b|^2 + sum of (sqrt A - sqrt B)^2 over their eigenvalues.
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
    standard = points(0, 500, 1)
    standard = standard - standard.mean(dim=0)
    standard = standard.squeeze(1) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(standard.squeeze(1).mT))).mT
    first, second = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 2.0, 0.5], [3.0, 2.0, 0.1]))
    generated, real = (
        (standard * values @ turn.mT + shift).unsqueeze(1) for values, shift in ((first, 0.0), (second, 1.0))
    )
    distance = begun(lambda: FrechetDistance("batch"), positions=1)
    assert float(distance(generated, real, ONE)) == pytest.approx(3 + float((first - second).square().sum()), rel=1e-9)


def test_frechet_estimators_see_the_samples_that_they_say():
    batches = [points(seed, 8, 1) for seed in range(6)]
    real = points(9, 30, 1, shift=1.0)
    rows = [batch.squeeze(1) for batch in batches]

    def run(make):
        distance = begun(make, positions=1)
        distance.observe(torch.cat(batches[:2]), real)
        for batch in batches[2:5]:
            distance(batch, real, ONE)
            distance.after_update()
        return distance

    def of(samples):
        alone = begun(lambda: FrechetDistance("batch"), positions=1)
        alone.observe(samples, real)
        return float(alone(samples.unsqueeze(1) if samples.dim() == 2 else samples, real, ONE))

    queue = run(lambda: FrechetDistance("queue", queue=24))
    # Buffers of a queue are float32.
    assert float(queue(batches[5], real, ONE)) == pytest.approx(of(torch.cat(batches[3:])), rel=1e-6)
    average = run(lambda: FrechetDistance("average", decay=0.75))
    mean, second = torch.cat(rows[:2]).mean(dim=0), torch.cat(rows[:2]).mT @ torch.cat(rows[:2]) / 16
    for row in rows[2:5]:
        mean, second = 0.75 * mean + 0.25 * row.mean(dim=0), 0.75 * second + 0.25 * row.mT @ row / 8
    torch.testing.assert_close(average.mean, mean)
    torch.testing.assert_close(average.second, second)


def test_only_the_share_of_the_batch_has_a_gradient():
    real, samples = points(0, 32, 1, shift=1.0), points(2, 32, 1)
    slopes = []
    for decay in (0.0, 0.9):
        distance = begun(lambda decay=decay: FrechetDistance(decay=decay), positions=1)
        distance.observe(samples, real)
        x = samples.clone().requires_grad_()
        distance(x, real, ONE).backward()
        slopes.append(x.grad)
    torch.testing.assert_close(slopes[1], 0.1 * slopes[0])


def test_few_samples_of_many_channels_have_finite_derivatives():
    distance = FrechetDistance("batch")
    distance.begin(1, 64)
    real, x = torch.randn(8, 1, 64), torch.randn(4, 1, 64, requires_grad=True)
    distance(x, real, ONE).backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_state_goes_on_from_a_checkpoint():
    for make in DISTANCES.values():
        one, other = begun(make), begun(make)
        for seed in range(3):
            one.observe(points(seed), points(seed + 10))
        one(points(20), points(30), ONE)
        one.after_update()
        other.load_state_dict(one.state_dict())
        assert float(one(points(21), points(31), ONE)) == float(other(points(21), points(31), ONE))


def test_all_landmarks_see_what_the_exact_distance_sees():
    real, generated = points(0, 40), points(1, 40, shift=0.7)
    exact = begun(KernelDistance)
    exact.observe(generated, real)
    seen = begun(lambda: KernelDistance(landmarks=40))
    for part in real.split(10):
        seen.observe(part, part)
    x = generated.clone().requires_grad_()
    slopes = [torch.autograd.grad(distance(x, real, ONE), x)[0] for distance in (exact, seen)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0.02, atol=2e-4)


def test_too_few_samples_for_landmarks_are_refused():
    with pytest.raises(ValueError, match="12 landmarks take as many real samples, found 8"):
        begun(DISTANCES["landmarks"])(points(0, 8), points(1, 8), ONE)


def test_sliced_wasserstein_of_one_channel_is_the_distance_of_sorted_values():
    distance = SlicedWasserstein()
    first, second = torch.tensor([3.0, 1.0, 2.0]).view(3, 1, 1), torch.tensor([0.0, 5.0, 4.0]).view(3, 1, 1)
    assert float(distance(first, second, ONE)) == pytest.approx((1 + 4 + 4) / 3)
    with pytest.raises(ValueError, match="3 generated and 2 real"):
        distance(first, second[:2], ONE)


def test_a_drift_is_that_of_its_field():
    field = DriftingField(temperatures=[0.5])
    generated, real = points(0, dtype=torch.float32).requires_grad_(), points(1, dtype=torch.float32)
    distance = DriftDistance(field)
    (slope,) = torch.autograd.grad(distance(generated, real, ONE), generated)
    assert slope.abs().max() > 0
    (swapped,) = torch.autograd.grad(distance(generated, generated.detach(), ONE), generated)
    assert swapped.abs().max() < slope.abs().max()
