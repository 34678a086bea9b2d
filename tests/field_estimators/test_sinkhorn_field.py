"""The drift of a Sinkhorn divergence: against a plain computation, and where it points."""

import pytest
import torch

from genflow.field_estimators import SinkhornField
from genflow.field_estimators.base import FeatureSets
from genflow.field_estimators.pairwise_drift import Counts

TEMPERATURE, ITERATIONS = 0.3, 7
SHIFT = torch.tensor([1.5, 0.0])


def points(count, shift=0.0, seed=0, groups=1):
    """(groups, count, 2), Gaussian."""
    return torch.randn(groups, count, 2, generator=torch.Generator().manual_seed(seed)) + shift


def coefficients(generated, negative, positive, weights=None, temperature=TEMPERATURE):
    """(n, G, K), for distances in the unit of the points."""
    field = SinkhornField(ITERATIONS, temperatures=(temperature,))
    counts = Counts(generated.shape[1], negative.shape[1], positive.shape[1])
    targets = torch.cat([generated, negative, positive], dim=1)
    distances = torch.cdist(targets, targets)[:, : field.sources(counts)]
    return field.coefficients(distances, weights, counts, temperature)


def plain_plan(sources, targets, source_mass, target_mass):
    """Sinkhorn's scaling in float64 between (I, 2) and (J, 2) points: where every source goes, and every target."""
    kernel = torch.exp(-(sources.unsqueeze(1) - targets).square().sum(dim=2) / 2 / TEMPERATURE)
    a, b = source_mass / source_mass.sum(), target_mass / target_mass.sum()
    v = torch.ones_like(b)
    for _ in range(ITERATIONS):
        u = 1 / (kernel @ (b * v))
        v = 1 / ((a * u) @ kernel)
    there, back = kernel * (b * v), kernel.T * (a * u)
    return there / there.sum(dim=1, keepdim=True), back / back.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_a_plain_computation(weighted):
    parts = (points(5), points(3, 0.5, seed=1), points(4, 1.0, seed=2))
    cloud = torch.cat(parts, dim=1)[0].double()
    mass = torch.linspace(0.5, 2, 12).double() if weighted else torch.ones(12).double()
    real, kind = torch.arange(8, 12), torch.arange(8)
    even, odd = torch.tensor([0, 2, 4, 5, 7]), torch.tensor([1, 3, 6])  # generated ones and negatives alternate
    expected = torch.zeros(8, 12).double()
    expected[:, real] = plain_plan(cloud[kind], cloud[real], mass[kind], mass[real])[0]
    there, back = plain_plan(cloud[even], cloud[odd], mass[even], mass[odd])
    expected[even.unsqueeze(1), odd] = -there
    expected[odd.unsqueeze(1), even] = -back
    found = coefficients(*parts, mass.float().unsqueeze(0) if weighted else None)[0]
    assert torch.allclose(found.double(), expected[:5], atol=1e-5)


def test_rows_sum_to_zero():
    found = coefficients(points(7, groups=3), points(4, 0.5, 1, 3), points(6, 1.0, 2, 3), torch.rand(3, 17) + 0.1)
    assert found.abs().sum(dim=2).min() > 1
    assert found.sum(dim=2).abs().max() < 1e-6


def test_plans_stay_finite_at_low_temperatures():
    found = coefficients(points(6), points(2, seed=1), points(5, 30.0, 2), temperature=1e-3)
    assert found.isfinite().all() and found.sum(dim=2).abs().max() < 1e-5


def test_negatives_count_by_their_weights():
    generated, positive, pair = points(6), points(5, 1.0, 1), points(2, 0.5, 2)

    def weighted(weight):
        weights = torch.tensor([1.0] * 6 + [weight] * 2 + [1.0] * 5).unsqueeze(0)
        return coefficients(generated, pair, positive, weights)

    none, without = weighted(0.0), coefficients(generated, pair[:, :0], positive)
    assert torch.allclose(none[:, :, :6], without[:, :, :6], atol=1e-6)
    assert torch.allclose(none[:, :, 8:], without[:, :, 6:], atol=1e-6)
    assert not none[:, :, 6:8].any()
    # A negative of weight 2 is two equal ones.
    double = weighted(2.0)
    twice = coefficients(generated, pair.repeat(1, 2, 1), positive)
    assert torch.allclose(double[:, :, 6:8], twice[:, :, 6:8] + twice[:, :, 8:10], atol=1e-6)
    assert torch.allclose(double[:, :, :6], twice[:, :, :6], atol=1e-6)


def drift(generated, positive):
    """(G, 2) of (1, count, 2) samples, in their unit."""
    sets = FeatureSets(*(part.unsqueeze(2) for part in (generated, positive, positive[:, :0])))
    sets.generated.requires_grad_()
    field = SinkhornField(100, temperatures=(0.1,), normalize_distances=False, normalize_forces=False)
    (grad,) = torch.autograd.grad(field({"it": sets}).losses["it"].sum(), sets.generated)
    return grad.flatten(0, 2) * sets.generated.numel() / -2


def test_drift_is_the_way_from_generated_to_real_samples():
    generated = points(400)
    apart, alike = drift(generated, points(400, SHIFT, 1)), drift(generated, points(400, seed=1))
    assert torch.allclose(apart.mean(dim=0), SHIFT, atol=0.15)
    assert alike.mean(dim=0).norm() < 0.15
    assert alike.square().mean() < apart.square().mean() / 8
