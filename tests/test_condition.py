"""What a Condition says about missing fields and dropped labels."""

import pytest
import torch

from genflow.condition import Condition


def test_missing_fields_are_named():
    condition = Condition(labels=torch.zeros(2, dtype=torch.int64))
    condition.require("labels", user="Network")
    with pytest.raises(ValueError, match=r"Network needs Condition\.guidance; given: labels"):
        condition.require("labels", "guidance", user="Network")
    with pytest.raises(ValueError, match="given: nothing"):
        Condition().require("interval", user="Network")


def test_both_ways_to_write_no_class():
    condition = Condition(labels=torch.tensor([0, 9, 10, -1]), guidance=torch.ones(4))
    assert condition.dropped(10).tolist() == [False, False, True, True]
    unlabelled = condition.unlabelled(10)
    assert unlabelled.labels.tolist() == [10] * 4 and unlabelled.labels.dtype == torch.int64
    assert unlabelled.guidance is condition.guidance
    assert unlabelled.dropped(10).all()


def test_rows_and_other_labels():
    whole = Condition(labels=torch.tensor([4, 5, 6]), duration=torch.tensor([0.1, 0.2, 0.3]))
    part = whole.rows(torch.tensor([2, 0]))
    assert part.labels.tolist() == [6, 4] and part.duration.equal(torch.tensor([0.3, 0.1]))
    assert part.guidance is None and part.time is None
    assert whole.rows(slice(1)).labels.tolist() == [4]
    other = whole.labelled(torch.tensor([1, 1, 1]))
    assert other.labels.tolist() == [1, 1, 1] and other.duration is whole.duration


def test_joined_rows_come_one_after_the_other():
    first = Condition(labels=torch.tensor([4, 5]), interval=torch.tensor([[0.0, 1.0], [0.2, 0.8]]))
    second = Condition(labels=torch.tensor([6]), interval=torch.tensor([[0.1, 0.5]]))
    joined = first.joined(second)
    assert joined.labels.tolist() == [4, 5, 6]
    assert joined.interval.equal(torch.tensor([[0.0, 1.0], [0.2, 0.8], [0.1, 0.5]]))
    assert joined.guidance is None and joined.style is None
    assert joined.rows(slice(2)).interval.equal(first.interval)


def test_unguided_is_scale_one_everywhere_or_in_an_interval():
    labels = torch.tensor([3, 1])
    condition = Condition.unguided(labels)
    assert condition.labels is labels and condition.guidance.tolist() == [1.0, 1.0]
    assert condition.interval.tolist() == [[0.0, 1.0]] * 2
    assert condition.time is None and condition.style is None
    assert Condition.unguided(labels, (0.25, 0.5)).interval.tolist() == [[0.25, 0.5]] * 2
