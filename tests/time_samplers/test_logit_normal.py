"""Times: their laws, shares of rows that are exact in every global batch, and no trace of how a batch is divided."""

from fractions import Fraction

import pytest
import torch
from scipy import stats

from genflow.draws import Draws
from genflow.time_samplers import LogitNormalTimes
from genflow.time_samplers.logit_normal import spread

MEAN, STD = 0.8, 0.7


def update(number=0, size=4000, seed=0):
    """The draws of an update."""
    return Draws(seed, torch.arange(number * size, (number + 1) * size), size)


def standardised(times):
    return ((torch.logit(times.double()) - MEAN) / STD).numpy()


def law(values, name, *arguments):
    return stats.kstest(values, name, arguments).pvalue > 0.01


# Laws


def test_ordered_pairs_of_logit_normal_times():
    times = LogitNormalTimes(MEAN, STD, equal_share=0.5)(update())
    assert times.t.dtype == times.r.dtype == torch.float32
    assert (times.r >= 0).all() and (times.r <= times.t).all() and (times.t <= 1).all()
    assert torch.equal(times.r == times.t, times.equal)
    # Of rows with r = t the one time is drawn plainly; on the others they are the larger and the smaller of two draws.
    assert law(standardised(times.t[times.equal]), "norm")
    larger, smaller = standardised(times.t[~times.equal]), standardised(times.r[~times.equal])
    assert law(stats.norm.cdf(larger) ** 2, "uniform")
    assert law((1 - stats.norm.cdf(smaller)) ** 2, "uniform")


def test_sorted_first_the_time_of_equal_rows_is_the_larger_of_two():
    plain, first = (LogitNormalTimes(MEAN, STD, sort_first=value)(update()) for value in (False, True))
    assert torch.equal(plain.equal, first.equal) and torch.equal(first.r == first.t, first.equal)
    for name in ("t", "r"):
        assert torch.equal(getattr(plain, name)[~plain.equal], getattr(first, name)[~plain.equal])
    assert law(stats.norm.cdf(standardised(first.t[first.equal])) ** 2, "uniform")
    assert (first.t >= plain.t).all() and 0.4 < (first.t > plain.t)[plain.equal].float().mean() < 0.6


def test_a_share_of_pairs_is_uniform():
    """The same rows are so for both times."""
    for share in (0.3, 1.0):
        plain, mixed = (LogitNormalTimes(20.0, 0.1, 0.0, uniform_share=value)(update()) for value in (0.0, share))
        assert (plain.r > 0.99).all()  # logit-normal times lie near 1
        uniform = mixed.r < 0.99
        assert uniform.float().mean().item() == pytest.approx(share, abs=0.04)
        assert law(mixed.t[uniform].double().numpy() ** 2, "uniform")
        assert (mixed.t[uniform] < 0.99).float().mean() > 0.95


# Regions


@pytest.mark.parametrize(
    ("region", "equal", "zero"),
    [("plane", 0.25, 0.0), ("r_equals_t", 1.0, 0.0), ("r_zero", 0.0, 1.0), ("both_lines", 0.25, 0.75)],
)
@pytest.mark.parametrize("sort_first", [False, True])
def test_regions(region, equal, zero, sort_first):
    times = LogitNormalTimes(MEAN, STD, 0.25, region=region, sort_first=sort_first)(update())
    assert times.equal.double().mean() == equal and torch.equal(times.equal, times.r == times.t)
    assert (times.r == 0).double().mean() == zero
    # Only pairs of two draws have a larger one.
    drawn = stats.norm.cdf(standardised(times.t[times.equal if region == "plane" else slice(None)]))
    assert law(drawn**2 if sort_first and region in ("plane", "r_equals_t") else drawn, "uniform")


# Shares


@pytest.mark.parametrize("share", ["0", "0.1", "0.25", "0.29", "0.3", "0.5", "0.57", "0.75", "1"])
def test_shares_are_exact_and_spread(share):
    """Any run of n places has share * n of the rows, but for less than one more or less."""
    exact = Fraction(share)
    for size in (1, 7, 10, 64, 100, 1000):
        rows = spread(torch.arange(size), float(share))
        assert rows.sum() == exact * size // 1
        counts = [0, *torch.cumsum(rows, 0).tolist()]
        for length in {1, 2, 5, size // 2, size}:
            for start in range(size - length + 1):
                assert abs(counts[start + length] - counts[start] - exact * length) < 1


@pytest.mark.parametrize("size", [16, 10])
def test_every_update_has_its_share(size):
    sampler = LogitNormalTimes(MEAN, STD, 0.3)
    for number in (0, 1, 12345):
        assert sampler(update(number, size)).equal.sum() == int(0.3 * size)
    assert not torch.equal(sampler(update(0, size)).t, sampler(update(1, size)).t)


@pytest.mark.parametrize("options", [{}, {"sort_first": True}, {"region": "both_lines", "uniform_share": 0.5}])
def test_times_do_not_depend_on_processes_or_micro_batches(options):
    sampler, draws = LogitNormalTimes(MEAN, STD, 0.3, **options), update(3, 24)
    whole = sampler(draws)
    for part in (slice(0, 12), slice(12, 24), slice(5, 6), slice(6, 24)):
        alone = sampler(draws[part])
        assert torch.equal(alone.equal, whole.equal[part])
        for name in ("t", "r"):  # elementary functions round the ends of a vector in another way
            assert torch.allclose(getattr(alone, name), getattr(whole, name)[part], rtol=1e-6)
        assert torch.equal(sampler(draws[part].global_batch()).equal, whole.equal)
