"""How far the Fréchet distance of samples lies from that of their distributions, by estimator."""

import pytest
import torch

from genflow.distribution_distances import FrechetDistance

WIDTH, BATCH = 32, 128


def values(updates, means=None, **options):
    """Distances of standard normal samples, their mean moved along one axis, from the standard normal itself."""
    random = torch.Generator().manual_seed(0)
    distance = FrechetDistance(**options)
    distance.begin(1, WIDTH)
    distance.real_count.fill_(1e12)
    distance.real_second.copy_(torch.eye(WIDTH))
    found = []
    for update in range(updates):
        rows = torch.randn(BATCH, 1, WIDTH, generator=random, dtype=torch.float64)
        rows[..., 0] += 0 if means is None else means[update]
        found.append(distance(rows, rows, None))
        distance.after_update()
    return torch.stack(found)


def bias(samples):
    """Of the distance of ``samples`` standard normal samples, to first order."""
    return WIDTH / samples + WIDTH * (WIDTH + 1) / (4 * samples)


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({"estimator": "batch"}, BATCH),
        ({"estimator": "queue", "queue": 8 * BATCH}, 8 * BATCH),
        ({"decay": 0.9}, 19 * BATCH),
        ({"decay": 0.98}, 99 * BATCH),
    ],
    ids=["batch", "queue", "0.9", "0.98"],
)
def test_bias_is_that_of_the_samples_that_count(options, samples):
    found = values(updates=400, **options)[-200:].mean()
    assert found == pytest.approx(bias(samples), rel=0.1)


@pytest.mark.parametrize("decay", [0.9, 0.98])
def test_running_averages_are_late(decay):
    """A mean that moves by a constant step is seen where it was decay / (1 - decay) updates before."""
    step = 0.05
    means = step * torch.arange(400)
    found = values(400, means, decay=decay)[-1]
    seen = means[-1] - step * decay / (1 - decay)
    # Second moments are of samples around many means, whose spread is part of the covariance.
    spread = 1 + step**2 * decay / (1 - decay) ** 2
    assert found == pytest.approx((seen**2 + (spread**0.5 - 1) ** 2).item(), rel=0.03)
