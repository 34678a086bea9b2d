"""Multiply-adds of computations that run, against counts by hand and by the trace."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genflow.analysis.description import count_recipe
from genflow.analysis.executed import ExecutedMacs
from genflow.config.graph import ComponentGraph
from genflow.layers.tangents import derivative

ROOT = Path(__file__).parents[2]


def count(run):
    with ExecutedMacs() as counted:
        run()
    return counted


def test_linear_maps_and_their_gradients():
    linear, x = nn.Linear(8, 5), torch.randn(3, 4, 8, requires_grad=True)
    counted = count(lambda: linear(x).sum().backward())
    assert counted.total == 3 * (3 * 4 * 8 * 5) and not counted.uncounted
    assert count(lambda: linear(x.detach()).sum().backward()).total == 2 * (3 * 4 * 8 * 5)
    assert count(lambda: torch.baddbmm(torch.randn(2, 3, 3), torch.randn(2, 3, 7), torch.randn(2, 7, 3))).total == 126


@pytest.mark.parametrize(
    ("layer", "forward"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), 2 * 6 * (4 * 4) * (4 * 9)),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), 2 * 8 * (8 * 8) * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 2 * 4 * (8 * 8) * (6 * 4)),
    ],
    ids=["strided", "grouped", "transposed"],
)
def test_convolutions(layer, forward):
    x = torch.randn(2, 4, 8, 8)
    assert count(lambda: layer(x)).total == forward
    assert count(lambda: layer(x).sum().backward()).total == 2 * forward
    assert count(lambda: layer(x.clone().requires_grad_()).sum().backward()).total == 3 * forward


def test_attention_forms_its_scores_again():
    q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    one = 2 * 3 * 16 * 16 * 8
    assert count(lambda: functional.scaled_dot_product_attention(q, k, v)).total == 2 * one
    counted = count(lambda: functional.scaled_dot_product_attention(q, k, v).sum().backward())
    assert counted.total == (2 + 5) * one and not counted.uncounted


def test_what_is_computed_again_counts_again_and_derivatives_count():
    linear, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    two = nn.Sequential(linear, linear)  # the input of the second is computed again, its output need not be
    assert count(lambda: checkpoint(two, x, use_reentrant=False).sum().backward()).total == (2 + 1 + 4) * 4 * 64
    assert count(lambda: derivative(lambda x: x @ x.mT, (x,), (x.detach(),))).total == 3 * 4 * 4 * 8


def test_a_product_without_a_rule_is_named():
    counted = count(lambda: torch.cdist(torch.randn(30, 4), torch.randn(30, 4)))
    assert counted.uncounted and counted.total == 0


def test_a_generator_as_the_trace_counts_it():
    graph = ComponentGraph.load(ROOT / "recipes" / "pmf_digits.yaml")
    generator = graph.build(for_training=False).generator
    labels = torch.zeros(3, dtype=torch.int64)
    counted = count(lambda: generator.sample(labels, 0))
    norms = count_recipe(graph).generator_macs - counted.total / 3  # which the trace counts too
    assert not counted.uncounted and 0 <= norms < 0.05 * counted.total / 3
