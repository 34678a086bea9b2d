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
