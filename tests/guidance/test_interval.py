"""Guidance in an interval: laws of scales, intervals and dropped labels, the target by hand, and what is evaluated."""

import pytest
import torch
from scipy import stats

from genflow.condition import Condition
from genflow.draws import Draws
from genflow.guidance.base import VelocityGuidance
from genflow.guidance.interval import IntervalGuidance
from genflow.time_samplers.base import Times

CLASSES = 10


def draws(count=4000, seed=0):
    return Draws(seed, torch.arange(count))


def times_of(t, equal):
    t, equal = torch.tensor(t), torch.tensor(equal)
    return Times(t, torch.where(equal, t, t / 2), equal)


def conditions(guidance, count=4000):
    """What is drawn for rows of which every other one has r = t."""
    equal = torch.arange(count) % 2 == 1
    labels = torch.arange(count) % CLASSES
    return guidance.condition(draws(count), labels, Times(torch.full((count,), 0.5), torch.zeros(count), equal)), equal


# Laws


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 2.5])
def test_density_of_the_scale_falls_as_its_power(power):
    """At the quantile q of the scales the integral of s^-power from 1 is q of the whole."""
    largest = 8.0
    quantiles = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    scales = IntervalGuidance(largest - 1, power).scale(quantiles)

    def integral(end):
        grid = torch.linspace(1, float(end), 20001, dtype=torch.float64)
        return torch.trapezoid(grid**-power, grid).item()

    for quantile, scale in zip(quantiles, scales, strict=True):
        assert integral(scale) / integral(largest) == pytest.approx(quantile.item(), abs=1e-6)
    assert scales[0] == 1 and scales[-1].item() == pytest.approx(largest)


@pytest.mark.parametrize(("power", "median"), [(1.0, 8**0.5), (2.0, 16 / 9)])
def test_scales_are_drawn(power, median):
    condition, _ = conditions(IntervalGuidance(7.0, power))
    assert condition.guidance.min() > 1 and condition.guidance.max() < 8
    assert condition.guidance.median().item() == pytest.approx(median, rel=0.06)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_without_a_range_all_scales_are_one(power):
    assert (conditions(IntervalGuidance(0.0, power))[0].guidance == 1).all()


def test_intervals():
    condition, equal = conditions(IntervalGuidance())
    assert (condition.interval[equal] == torch.tensor([0.0, 1.0])).all()
    start, end = condition.interval[~equal].double().unbind(1)
    assert stats.kstest((2 * start).numpy(), "uniform").pvalue > 0.01
    assert stats.kstest((2 * end - 1).numpy(), "uniform").pvalue > 0.01
    others = torch.stack([start, end, condition.guidance[~equal].double()])
    assert (torch.corrcoef(others) - torch.eye(3)).abs().max() < 4.5 / 2000**0.5
    whole, _ = conditions(IntervalGuidance(interval=False))
    assert (whole.interval == torch.tensor([0.0, 1.0])).all()
    assert torch.equal(whole.guidance, condition.guidance)
    assert torch.equal(condition.labels, torch.arange(4000) % CLASSES)


def test_conditions_are_those_of_the_samples_alone():
    guidance, labels = IntervalGuidance(), torch.arange(8)
    times = times_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [False, True] * 4)
    whole, part = guidance.condition(draws(8), labels, times), slice(3, 6)
    some = Times(times.t[part], times.r[part], times.equal[part])
    alone = guidance.condition(draws(8)[part], labels[part], some)
    assert torch.equal(alone.guidance, whole.guidance[part]) and torch.equal(alone.interval, whole.interval[part])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_labels_are_lost_where_r_is_t_first(share):
    """As many as a binomial number; rows with r < t lose theirs only when all others have."""
    guidance, equal, counts = IntervalGuidance(label_drop=share), torch.arange(20) % 3 == 1, []
    assert equal.sum() == 7
    for seed in range(100):
        dropped = guidance.dropped(draws(20, seed), equal)
        counts.append(int(dropped.sum()))
        assert counts[-1] == (draws(20, seed).uniform("label drop") < share).sum()
        assert (dropped & equal).sum() == min(counts[-1], 7)
    mean, spread = 20 * share, (20 * share * (1 - share) / 100) ** 0.5
    assert sum(counts) / 100 == pytest.approx(mean, abs=4 * spread) and len(set(counts)) > 3


def test_all_labels_or_none():
    equal = torch.arange(20) % 2 == 1
    assert not IntervalGuidance(label_drop=0.0).dropped(draws(20), equal).any()
    assert IntervalGuidance(label_drop=1.0).dropped(draws(20), equal).all()


# The target


class Own:
    """A model's velocity that tells rows, labels and scales apart; keeps the rows that it was asked for."""

    def __init__(self):
        self.rows = []

    def __call__(self, rows, told):
        assert len(rows) == len(told.labels) == len(told.guidance)
        assert (told.interval == torch.tensor([0.0, 1.0])).all() and told.interval.shape == (len(rows), 2)
        self.rows += rows.tolist()
        return self.at(rows, told.labels, told.guidance).expand(-1, 1, 2, 2)

    @staticmethod
    def at(row, label, scale):
        return (row + 0.1 * label + label * torch.as_tensor(scale).log()).view(-1, 1, 1, 1)


# t, r = t, start and end of the interval, scale, dropped: and whether the row is guided.
ROWS = [
    (0.5, False, 0.2, 0.8, 3.0, False, True),
    (0.9, False, 0.2, 0.8, 3.0, False, False),  # after its interval
    (0.1, False, 0.2, 0.8, 3.0, False, False),  # before it
    (0.9, True, 0.0, 1.0, 2.0, False, True),
    (0.5, True, 0.0, 1.0, 2.0, True, False),  # dropped
    (0.5, False, 0.2, 0.8, 4.0, True, False),  # dropped, but it moves
    (0.5, True, 0.0, 1.0, 1.0, False, False),  # of scale 1
    (0.2, False, 0.2, 0.8, 2.0, False, True),  # at the start
    (0.8, False, 0.2, 0.8, 2.0, False, True),  # at the end
]
DROPPED = [4, 5]


def guide(needed_rows_only):
    """The target, its velocity when the trained pass has added its own, the one without guidance, and the model."""
    t, equal, start, end, scale, dropped, _ = (list(column) for column in zip(*ROWS, strict=True))
    index, scale = torch.arange(len(ROWS)), torch.tensor(scale)
    interval = torch.stack([torch.tensor(start), torch.tensor(end)], dim=1)
    condition = Condition(labels=index + 1, guidance=scale, interval=interval)
    conditional = torch.randn(len(ROWS), 1, 2, 2, generator=torch.Generator().manual_seed(0))
    own = Own()
    target = IntervalGuidance()(
        own, conditional, condition, times_of(t, equal), torch.tensor(dropped), CLASSES, needed_rows_only
    )
    # The trained pass knows the velocity at t only where r = t.
    trained = torch.where(torch.tensor(equal).view(-1, 1, 1, 1), Own.at(index, index + 1, scale), 1e3)
    return target, target.complete(trained.expand(-1, 1, 2, 2)), conditional, own


@pytest.mark.parametrize("needed_rows_only", [True, False])
def test_target_by_hand(needed_rows_only):
    target, velocity, conditional, _ = guide(needed_rows_only)
    for row, (_, equal, _, _, scale, dropped, guided) in enumerate(ROWS):
        label, index = torch.tensor(row + 1), torch.tensor(row)
        difference = Own.at(index, label, scale) - Own.at(index, torch.tensor(CLASSES), 1.0)
        expected = conditional[row] + (1 - 1 / scale) * guided * difference[0]
        assert torch.allclose(velocity[row], expected, atol=1e-5), row
        if not equal:  # the others do not move
            # A dropped row keeps its label and scale for the tangent.
            tangent = Own.at(index, label, scale if guided or dropped else 1.0)[0].expand(1, 2, 2)
            assert torch.allclose(target.tangent[row], tangent, atol=1e-5), row
    assert torch.equal(velocity[DROPPED], conditional[DROPPED])


def test_only_needed_rows_are_evaluated():
    target, velocity, _, own = guide(needed_rows_only=True)
    moving = [row for row, entry in enumerate(ROWS) if not entry[1]]
    guided = [row for row, entry in enumerate(ROWS) if entry[6]]
    assert own.rows == moving + guided  # with class, and without
    every, whole, _, own = guide(needed_rows_only=False)
    assert sorted(own.rows) == sorted([*range(len(ROWS))] * 3)
    assert torch.allclose(velocity, whole, atol=1e-6)
    assert torch.equal(target.tangent[moving], every.tangent[moving])


def test_what_the_trained_pass_adds_carries_no_gradient():
    target, *_ = guide(needed_rows_only=True)
    trained = torch.ones(len(ROWS), 1, 2, 2, requires_grad=True)
    assert not target.complete(trained).requires_grad


def test_a_fixed_point_of_the_target_has_the_guidance_that_it_is_told():
    """Where v_g = v_c and v_null is right, v_c - v_null is w times what the data say: ordinary guidance of scale w."""
    data, null, scale = torch.tensor(1.5), torch.tensor(-0.5), torch.tensor([2.0, 5.0])
    guided = null + scale * (data - null)

    def own(rows, told):
        return torch.where(told.labels == CLASSES, null, guided[rows]).view(-1, 1, 1, 1)

    condition = Condition(labels=torch.tensor([0, 1]), guidance=scale, interval=torch.tensor([[0.0, 1.0]] * 2))
    nothing = torch.zeros(2, dtype=torch.bool)
    times = times_of([0.4, 0.6], [False, False])
    target = IntervalGuidance()(own, data.expand(2, 1, 1, 1), condition, times, nothing, CLASSES)
    assert torch.allclose(target.velocity.flatten(), guided)


def test_is_told_scale_and_interval():
    assert IntervalGuidance.condition_fields == ("guidance", "interval")
    assert issubclass(IntervalGuidance, VelocityGuidance)
