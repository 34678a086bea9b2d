"""Rates of GPUs."""

import pytest

from genflow.analysis.chips import seconds_at_peak
from genflow.analysis.scaling import Machine


def test_seconds_at_the_rate_of_the_precision():
    assert seconds_at_peak(1e12, "NVIDIA H200", "bfloat16") == pytest.approx(2 / 989)
    assert seconds_at_peak(1e12, "NVIDIA H200", "float32") == pytest.approx(2 / 67)
    assert seconds_at_peak(Machine().reduced_rate, "NVIDIA H100 80GB HBM3", "bfloat16") == 1


@pytest.mark.parametrize("name", ["", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_other_gpus_and_parts_of_one_have_no_rate(name):
    assert seconds_at_peak(1e12, name, "bfloat16") is None
