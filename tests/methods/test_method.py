"""The contract of methods: their generator, their state, and what they say where they have nothing to say."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from genflow import ComponentGraph, open_run
from genflow.codecs import Identity
from genflow.flow_teachers import TARFlow
from genflow.methods import MaximumLikelihood
from genflow.methods.base import Method

RECIPES = Path(__file__).parents[2] / "recipes"


def make_method():
    torch.manual_seed(0)
    return MaximumLikelihood(TARFlow(4, 1, 2, 16, 2, 1, 3, head_width=8), Identity(4, 1), 0.3)


class Plain(Method):
    """What trains something else than a generator."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "recipe",
    ["itarflow_digits", "biflow_digits", "pmf_digits", "jit_b16_imagenet256", "drift_digits", "classifier_digits"],
)
def test_the_generator_is_no_part_of_the_state(recipe):
    with torch.device("meta"):
        method = ComponentGraph.load(RECIPES / f"{recipe}.yaml").build()
    assert (method.generator is None) == (recipe == "classifier_digits")
    for names in (method.state_dict(), dict(method.named_parameters()), method.trained_state()):
        assert names and not any(name.startswith("generator") for name in names)
    assert method.generator not in list(method.modules())
    assert method.artifact_module.state_dict().keys() == {
        name.removeprefix(f"{method.artifact}.")
        for name in method.state_dict()
        if name.startswith(f"{method.artifact}.")
    }


def test_the_generator_shares_the_methods_modules():
    method = make_method()
    assert method.generator.network is method.flow and method.generator.codec is method.codec
    assert method.to(torch.float64).generator.network.prior_variance.dtype == torch.float64
    other = copy.deepcopy(method)
    assert other.generator.network is other.flow is not method.flow
    other.generator = None
    assert other.generator is None and method.generator is not None


def test_a_method_without_a_generator():
    method = Plain()
    assert method.generator is None and method.state_dict().keys() == {"linear.weight", "linear.bias"}


def test_by_default_there_is_nothing_to_say_of_a_batch():
    method = make_method()
    assert method.feed is None
    parts = [{"images": torch.zeros(2, 1, 4, 4)}] * 2
    assert method.prepare(parts) == parts and method.diagnose(parts) == ""


def test_modules_hear_of_every_update():
    class Counting(nn.Module):
        updates = 0

        def after_update(self):
            self.updates += 1

    method = Plain()
    method.inner = nn.ModuleList([Counting(), Counting()])
    method.after_update()
    method.after_update()
    assert [module.updates for module in method.inner] == [2, 2]


def test_the_generator_is_in_the_methods_mode(finished_run):
    generator = open_run(finished_run).generator()
    assert not generator.training and not any(module.training for module in generator.modules())
