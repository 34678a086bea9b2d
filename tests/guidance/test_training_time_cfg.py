"""The algebra of guidance in training, and the law of its draws (docs/biflow.md, B17)."""

import math

import pytest
import torch
from scipy import stats

from genflow.draws import Draws
from genflow.guidance import TrainingTimeCFG

CLASSES, BATCH = 10, 6


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(dropped=()):
    return torch.tensor([row in dropped for row in range(BATCH)])


SCALES = torch.tensor([0.0, 0.1, 1.0, 2.5, 6.9, 100.0], dtype=torch.float64)


def test_scale_zero_is_plain():
    guided, null = random(BATCH, 4, 3), random(BATCH, 4, 3, seed=1)
    found = TrainingTimeCFG().recover(guided, null, torch.zeros(BATCH, dtype=torch.float64), kept())
    assert torch.equal(found, guided)


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 4), ()])
def test_recovery_undoes_the_mixture(shape):
    conditional, null = random(BATCH, *shape), random(BATCH, *shape, seed=1)
    scale = SCALES.view(-1, *[1] * len(shape))
    guided = (1 + scale) * conditional - scale * null
    assert (TrainingTimeCFG().recover(guided, null, SCALES, kept()) - conditional).abs().max() < 1e-12


def test_recovery_commutes_with_affine_maps():
    """So an affine projection of the recovered state is the recovery of projected states, bias included."""
    guided, null, guidance = random(BATCH, 4, 8), random(BATCH, 4, 8, seed=1), TrainingTimeCFG()
    project = torch.nn.Linear(8, 3).double()
    before = project(guidance.recover(guided, null, SCALES, kept()))
    after = guidance.recover(project(guided), project(null), SCALES, kept())
    assert (before - after).abs().max() < 1e-12
    curved = torch.nn.Sequential(project, torch.nn.SiLU())
    before = curved(guidance.recover(guided, null, SCALES, kept()))
    after = guidance.recover(curved(guided), curved(null), SCALES, kept())
    assert (before - after).abs().max() > 1e-3


def test_dropped_label_is_a_fixed_point_at_every_scale():
    guided, null = random(BATCH, 4, 3), random(BATCH, 4, 3, seed=1)
    found = TrainingTimeCFG().recover(guided, null, SCALES, kept(dropped=(3, 5)))
    assert torch.equal(found[[3, 5]], guided[[3, 5]])
    assert not torch.allclose(found[[2, 4]], guided[[2, 4]])
    same = TrainingTimeCFG().recover(guided, guided, SCALES, kept())
    assert (same - guided).abs().max() < 1e-12


def test_recovery_of_half_precision_outputs_is_computed_in_float32():
    guided, null = random(BATCH, 50).bfloat16(), random(BATCH, 50, seed=1).bfloat16()
    scale = SCALES.float()
    found = TrainingTimeCFG().recover(guided, null, scale, kept())
    exact = TrainingTimeCFG().recover(guided.double(), null.double(), scale.double(), kept())
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-6


def test_law_of_the_scale():
    guidance, count = TrainingTimeCFG(max_scale=7.0, plain_share=0.1), 20000
    scale = guidance.draw(Draws(0, torch.arange(count)))
    assert scale.shape == (count,) and scale.min() == 0 and scale.max() < 7
    plain = (scale == 0).float().mean().item()
    assert plain == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / count))
    fraction = torch.log1p(scale[scale > 0]) / math.log(8)
    assert stats.kstest(fraction.numpy(), "uniform").pvalue > 1e-3


def test_share_of_dropped_labels():
    guidance, count = TrainingTimeCFG(label_drop=0.1), 20000
    labels = torch.arange(count) % CLASSES
    dropped = guidance.drop_labels(labels, CLASSES, Draws(0, torch.arange(count)))
    assert dropped.dtype == torch.int64
    gone = dropped == CLASSES
    assert torch.equal(dropped[~gone], labels[~gone])
    assert gone.float().mean().item() == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / count))
    scale = guidance.draw(Draws(0, torch.arange(count)))
    both = (gone & (scale == 0)).float().mean().item()
    assert both == pytest.approx(0.01, abs=5 * math.sqrt(0.0099 / count))  # independent of each other


def test_draws_depend_on_seed_and_position_alone():
    guidance, positions = TrainingTimeCFG(), torch.arange(64)
    labels = positions % CLASSES
    draws = Draws(3, positions)
    scale, dropped = guidance.draw(draws), guidance.drop_labels(labels, CLASSES, draws)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guidance.draw(Draws(3, positions[order])), scale[order])
    assert torch.equal(guidance.drop_labels(labels[order], CLASSES, Draws(3, positions[order])), dropped[order])
    assert torch.equal(guidance.draw(draws[10:20]), scale[10:20])
    torch.manual_seed(1)
    assert torch.equal(guidance.draw(draws), scale)
    assert not torch.equal(guidance.draw(Draws(4, positions)), scale)


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_shares_of_zero_and_one(share, expected):
    guidance, draws = TrainingTimeCFG(plain_share=share, label_drop=share), Draws(0, torch.arange(1000))
    assert (guidance.draw(draws) == 0).all().item() == expected
    assert (guidance.drop_labels(torch.zeros(1000, dtype=torch.int64), 10, draws) == 10).all().item() == expected
    assert share or (guidance.draw(draws) > 0).all()
