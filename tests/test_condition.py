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
