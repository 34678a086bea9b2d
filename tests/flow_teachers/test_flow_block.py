"""Guidance of affine parameters (docs/biflow.md, B8, B9)."""

import pytest
import torch

from genflow.flow_teachers.flow_block import GuidedInverse


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOG_SCALE, SHIFT = draw(6, 5, seed=0), draw(6, 5, seed=1)  # three labelled rows, three null rows
WEIGHT = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)


def combine(weight=WEIGHT, guided="both", anneal=False, rule="gaussian", progress=1.0, given=(LOG_SCALE, SHIFT)):
    return GuidedInverse(weight, guided, anneal, 1.0, rule).combine(*given, progress)


def test_gaussian_rule_is_a_product_of_gaussians():
    """p_labelled^(1 + w) / p_null^w by precisions, the null branch no narrower than the labelled one."""
    (deviation, null_deviation), (mean, null_mean) = LOG_SCALE.exp().chunk(2), SHIFT.chunk(2)
    assert (null_deviation < deviation).any() and (null_deviation > deviation).any()
    precision, null_precision = deviation**-2, torch.maximum(null_deviation, deviation) ** -2
    product = (1 + WEIGHT) * precision - WEIGHT * null_precision
    product_mean = ((1 + WEIGHT) * precision * mean - WEIGHT * null_precision * null_mean) / product
    log_scale, shift = combine()
    assert torch.allclose(log_scale.exp(), product**-0.5, atol=1e-12)
    assert torch.allclose(shift, product_mean, atol=1e-12)
    assert (log_scale.exp() <= deviation * (1 + 1e-12)).all()


@pytest.mark.parametrize("rule", ["linear", "gaussian"])
def test_no_weight_or_no_class_changes_nothing(rule):
    labelled = LOG_SCALE[:3], SHIFT[:3]
    for found, expected in zip(combine(torch.zeros_like(WEIGHT), rule=rule), labelled, strict=True):
        assert torch.allclose(found, expected, atol=1e-14)
    same = LOG_SCALE[:3].repeat(2, 1), SHIFT[:3].repeat(2, 1)
    for found, expected in zip(combine(rule=rule, given=same), labelled, strict=True):
        assert torch.allclose(found, expected, atol=1e-14)


def test_linear_rule_leads_away_from_the_null_branch():
    for found, given in zip(combine(rule="linear"), (LOG_SCALE, SHIFT), strict=True):
        assert torch.allclose(found, (1 + WEIGHT) * given[:3] - WEIGHT * given[3:], atol=1e-14)


@pytest.mark.parametrize("rule", ["linear", "gaussian"])
def test_parts_and_annealing(rule):
    log_scale, shift = combine(rule=rule)
    assert torch.equal(combine(rule=rule, guided="scale")[0], log_scale)
    assert torch.equal(combine(rule=rule, guided="scale")[1], SHIFT[:3])
    assert torch.equal(combine(rule=rule, guided="shift")[0], LOG_SCALE[:3])
    assert torch.equal(combine(rule=rule, guided="shift")[1], shift)
    annealed, weaker = combine(rule=rule, anneal=True, progress=0.25), combine(0.25 * WEIGHT, rule=rule)
    assert torch.equal(annealed[0], weaker[0]) and torch.equal(annealed[1], weaker[1])
    assert torch.equal(combine(rule=rule, progress=0.25)[0], log_scale)
