"""Weight averages: constant decay, half-lives in images, published ones, several at once, and swapping them in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.config.sections import AverageSection
from genflow.engine.averages import WeightAverage, swapped


def test_constant_decay():
    weight = torch.zeros(3)
    average = WeightAverage({"w": weight}, AverageSection(decay=0.9))
    for step in range(1, 6):
        weight.fill_(float(step))
        average.update({"w": weight}, images=step * 10, batch_size=10)
    expected = 0.0
    for step in range(1, 6):
        expected = 0.9 * expected + 0.1 * step
    assert torch.allclose(average.values["w"], torch.full((3,), expected))


def test_half_life_law():
    """pMF's law: beta = 0.5^(batch / min(half-life, 5% of the images seen))."""
    average = WeightAverage({}, AverageSection(half_life=500_000))
    assert average.decay(images=1024, batch_size=1024) == pytest.approx(0.5**20)
    final = average.decay(images=10**9, batch_size=1024)
    assert final == pytest.approx(0.998581, abs=1e-6)
    assert average.decay(images=1024 * 9765, batch_size=1024) < final  # the ramp ends at update 9766
    assert average.decay(images=1024 * 9766, batch_size=1024) == final


def test_published_decays_and_averages():
    golden = np.load(Path(__file__).parents[1] / "golden" / "pmf" / "scalar_laws.npz", allow_pickle=False)
    rules = [AverageSection(half_life=1000 * float(kimg)) for kimg in golden["ema/halflife_kimg"]]
    for rule, decays, expected in zip(rules, golden["ema/beta"], golden["ema/trajectory"], strict=True):
        average = WeightAverage({"w": torch.tensor(0.25)}, rule)
        ours = [average.decay(images=1024 * int(step), batch_size=1024) for step in golden["ema/steps"]]
        assert np.abs(np.array(ours) - decays).max() < 1e-6
        trajectory = []
        for step in range(1, len(expected) + 1):
            average.update({"w": torch.tensor(0.1 * step).sin()}, images=1024 * step, batch_size=1024)
            trajectory.append(average.values["w"].item())
        assert np.abs(np.array(trajectory) - expected).max() < 1e-6


def test_half_life_counts_images_not_updates():
    """Without a ramp, one half-life of images halves the old value however they are batched."""
    for batch in (1, 10, 50):
        average = WeightAverage({"w": torch.ones(1)}, AverageSection(half_life=100, ramp_up=None))
        for step in range(100 // batch):
            average.update({"w": torch.zeros(1)}, images=(step + 1) * batch, batch_size=batch)
        assert average.values["w"].item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    "rule", [{"decay": 0.9}, {"half_life": 300, "ramp_up": None}, {"half_life": 300, "ramp_up": 2.0}], ids=str
)
def test_share_of_the_initial_weights(rule):
    average = WeightAverage({"w": torch.ones(1)}, AverageSection(**rule))
    for step in range(1, 21):
        average.update({"w": torch.zeros(1)}, images=step * 10, batch_size=10)
    assert average.values["w"].item() == pytest.approx(average.initial_share(20, batch_size=10), rel=1e-5)
    assert average.initial_share(0, batch_size=10) == 1


def test_averages_are_float32_and_copies():
    weight = torch.ones(2, dtype=torch.bfloat16)
    average = WeightAverage({"w": weight}, AverageSection(decay=0.5))
    weight.zero_()
    assert average.values["w"].dtype == torch.float32
    assert average.values["w"].tolist() == [1.0, 1.0]


def test_swapped_restores_even_after_an_error():
    weight = torch.nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": torch.full((2,), 5.0)}, AverageSection(decay=0.5))
    with pytest.raises(RuntimeError, match="inside"), swapped({"w": weight}, average):
        assert weight.tolist() == [5.0, 5.0]
        raise RuntimeError("inside")
    assert weight.tolist() == [1.0, 1.0]


def test_section_needs_exactly_one_rule():
    for arguments in ({}, {"decay": 0.9, "half_life": 10}):
        with pytest.raises(ValueError, match="either decay or half_life"):
            AverageSection(**arguments)
