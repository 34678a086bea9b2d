"""Guidance of one scale: the mixture by hand, its effective scale, and what is evaluated."""

import pytest
import torch

from genflow.condition import Condition
from genflow.draws import Draws
from genflow.guidance.fixed_mixture import FixedMixture
from genflow.time_samplers.base import Times

CLASSES = 10
T = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.9, 0.5])
EQUAL = torch.tensor([False, True, False, True, False, True])
DROPPED = torch.tensor([False, False, False, False, False, True])
LABELS = torch.arange(6)
GUIDED = [1, 2, 3]  # with the interval [0.3, 0.8], whose ends belong to it
TIMES = Times(T, torch.where(EQUAL, T, T / 2), EQUAL)
CONDITIONAL = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class Own:
    """A model's velocity that tells rows and labels apart; keeps what it was asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, rows, told):
        assert told.guidance is None and told.interval is None
        self.calls.append((rows.tolist(), told.labels.tolist()))
        return (rows + 0.1 * told.labels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def guide(scale, mixing, needed_rows_only=True):
    own = Own()
    guidance = FixedMixture(scale, mixing, (0.3, 0.8))
    condition = guidance.condition(Draws(0, torch.arange(6)), LABELS, TIMES)
    target = guidance(own, CONDITIONAL, condition, TIMES, DROPPED, CLASSES, needed_rows_only)
    return target, own


@pytest.mark.parametrize("needed_rows_only", [True, False])
@pytest.mark.parametrize(("scale", "mixing"), [(0.2, 0.92), (1.0, 0.5), (2.0, 0.0), (1.0, 0.0)])
def test_target_by_hand(scale, mixing, needed_rows_only):
    target, _ = guide(scale, mixing, needed_rows_only)
    for row in range(6):
        expected = CONDITIONAL[row]
        if row in GUIDED:
            null, with_class = row + 0.1 * CLASSES, row + 0.1 * row
            expected = scale * expected + (1 - scale - mixing) * null + mixing * with_class
        assert torch.allclose(target.velocity[row], expected, atol=1e-5), row
    assert torch.equal(target.tangent, target.velocity)
    for row in {*range(6)} - {*GUIDED}:
        assert torch.equal(target.velocity[row], CONDITIONAL[row])


def test_only_needed_rows_are_evaluated():
    null, every = [CLASSES] * 6, [*range(6)]
    assert guide(1.0, 0.5)[1].calls == [(GUIDED, null[:3]), (GUIDED, GUIDED)]
    assert guide(2.0, 0.0)[1].calls == [(GUIDED, null[:3])]
    assert guide(2.0, 0.0, needed_rows_only=False)[1].calls == [(every, null), (every, every)]


@pytest.mark.parametrize(("scale", "mixing", "effective"), [(0.2, 0.92, 2.5), (1.0, 0.5, 2.0), (3.0, 0.0, 3.0)])
def test_effective_scale(scale, mixing, effective):
    """Where v_g = v_c and v_null is right, v_c is what ordinary guidance of the scale w / (1 - k) gives."""
    data, null = 1.5, -0.5
    guided = null + effective * (data - null)

    def own(rows, told):
        return torch.where(told.labels == CLASSES, null, guided).view(-1, 1, 1, 1)

    condition, nothing = Condition(labels=LABELS), torch.zeros(6, dtype=torch.bool)
    target = FixedMixture(scale, mixing)(own, torch.full((6, 1, 1, 1), data), condition, TIMES, nothing, CLASSES)
    assert torch.allclose(target.velocity, torch.full((6, 1, 1, 1), guided), atol=1e-5)


def test_the_model_is_told_nothing():
    assert FixedMixture(1.0, 0.5).condition_fields == ()
    condition = FixedMixture(1.0, 0.5).condition(Draws(0, torch.arange(6)), LABELS, TIMES)
    assert condition == Condition(labels=LABELS)


def test_an_interval_that_ends_before_it_starts():
    with pytest.raises(ValueError, match=r"interval \[0.8, 0.3\] ends before it starts"):
        FixedMixture(1.0, 0.5, (0.8, 0.3))
