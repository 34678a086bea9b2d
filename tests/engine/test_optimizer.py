"""Optimizers with rates and weight decays by parameter."""

import copy

import pytest
import torch
from torch import nn

from genflow import ComponentGraph, UserError
from genflow.engine.optimizer import build_optimizer

ADAMW = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.2}
MUON = {"type": "Muon", "lr": 0.1}


def build(recipe, optimizer, paramwise=None):
    """The method and its optimizer, and the settings of every parameter by name."""
    section = {"optimizer": optimizer, "paramwise_cfg": paramwise}
    graph = ComponentGraph.from_recipe({**recipe, "optim_wrapper": section})
    method = graph.build()
    built = build_optimizer(graph.section("optim_wrapper"), method)
    names = {parameter: name for name, parameter in method.trained_parameters().items()}
    settings = {names[parameter]: group for group in built.param_groups for parameter in group["params"]}
    assert settings.keys() == method.trained_parameters().keys()
    assert sum(len(group["params"]) for group in built.param_groups) == len(settings)
    return method, built, settings


def of(settings, key):
    return {name: group[key] for name, group in settings.items()}


def test_without_rules_there_is_one_group(tiny_recipe):
    method, built, settings = build(tiny_recipe, ADAMW)
    assert len(built.param_groups) == 1 and built.param_groups[0]["weight_decay"] == 0.2
    assert list(settings) == list(method.trained_parameters())


def test_rates_and_decays_by_name_and_sort(tiny_recipe):
    """The longest key that fits, then norms, then biases, then what has one dimension."""
    paramwise = {
        "custom_keys": {"embed": {"lr_mult": 0.5}, "embed.weight": {"lr_mult": 2.0, "decay_mult": 0.5}},
        "norm_decay_mult": 0.0,
        "bias_lr_mult": 3.0,
        "bias_decay_mult": 0.25,
    }
    method, _, settings = build(tiny_recipe, ADAMW, paramwise)
    norms = {name for name, module in method.named_modules() if isinstance(module, nn.LayerNorm)}
    seen = set()
    for name, group in settings.items():
        owner, _, last = name.rpartition(".")
        if "embed.weight" in name:
            expected = ("embed.weight", 2.0, 0.5)
        elif "embed" in name:
            expected = ("embed", 0.5, 1.0)
        elif owner in norms:
            expected = ("norm", 1.0, 0.0)
        elif last == "bias":
            expected = ("bias", 3.0, 0.25)
        else:
            expected = ("other", 1.0, 1.0)
        seen.add(expected[0])
        found = (group["lr"], group["weight_decay"])
        assert found == pytest.approx((0.1 * expected[1], 0.2 * expected[2])), name
    assert seen == {"embed.weight", "embed", "norm", "bias", "other"}


def test_gains_of_rms_norms_are_flat(tiny_recipe):
    tiny_recipe["model"]["flow"]["norm"] = "rms"
    method, _, settings = build(tiny_recipe, ADAMW, {"flat_decay_mult": 0.0})
    for name, parameter in method.trained_parameters().items():
        assert settings[name]["weight_decay"] == (0.0 if parameter.dim() == 1 else 0.2), name


def test_rules_divide_the_groups_of_muon(tiny_recipe):
    """Matrices stay matrices, with the rates of their rules; momentum and so on are those of the recipe."""
    optimizer = {**MUON, "momentum": 0.8}
    _, plain, before = build(tiny_recipe, optimizer)
    rules = {"custom_keys": {"attention": {"lr_mult": 0.5}}, "bias_lr_mult": 2.0}
    _, built, settings = build(tiny_recipe, optimizer, rules)
    assert of(settings, "matrices") == of(before, "matrices") and len(set(of(settings, "matrices").values())) > 1
    assert len(built.param_groups) > len(plain.param_groups)
    assert set(of(settings, "momentum").values()) == {0.8}
    for name, rate in of(settings, "lr").items():
        factor = 0.5 if "attention" in name else 2.0 if name.endswith("bias") and "norm" not in name else 1.0
        assert rate == pytest.approx(0.1 * factor), name


@pytest.mark.parametrize("optimizer", [{"type": "AdamW", "weight_decay": 0.2}, {"type": "Muon"}], ids=["AdamW", "Muon"])
def test_factors_are_of_defaults_too(tiny_recipe, optimizer):
    _, _, settings = build(tiny_recipe, optimizer, {"custom_keys": {"flow.": {"lr_mult": 0.5}}})
    assert set(of(settings, "lr").values()) == {0.5e-3}


def test_an_update_uses_the_rates(tiny_recipe):
    method, built, settings = build(tiny_recipe, {"type": "SGD", "lr": 0.1}, {"custom_keys": {"embed": {"lr_mult": 0}}})
    before = copy.deepcopy(method.trained_parameters())
    for parameter in method.trained_parameters().values():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    for name, parameter in method.trained_parameters().items():
        assert torch.allclose(parameter, before[name] - settings[name]["lr"]), name
        assert ("embed" in name) == torch.equal(parameter, before[name])


@pytest.mark.parametrize(
    ("optimizer", "paramwise", "message"),
    [
        (
            ADAMW,
            {"bais_lr_mult": 2},
            "optim_wrapper.paramwise_cfg.bais_lr_mult: unknown key; nearest match: 'bias_lr_mult'",
        ),
        (
            ADAMW,
            {"bias_lr_mult": -1},
            "optim_wrapper.paramwise_cfg.bias_lr_mult: found -1, expected a number of at least 0",
        ),
        (
            ADAMW,
            {"custom_keys": {"embed": {"lr_mul": 2}}},
            "optim_wrapper.paramwise_cfg.custom_keys.embed.lr_mul: unknown key; nearest match: 'lr_mult'",
        ),
        (
            ADAMW,
            {"custom_keys": {"embed": {}, "embeding": {}}},
            "optim_wrapper.paramwise_cfg.custom_keys.embeding: fits no parameter",
        ),
        (
            ADAMW,
            {"custom_keys": {"codec": {"lr_mult": 0.5}}},
            "optim_wrapper.paramwise_cfg.custom_keys.codec: fits no parameter",
        ),
        (MUON, {"norm_decay_mult": 0.0}, "optim_wrapper.paramwise_cfg: a Muon has no weight decay to multiply"),
        (
            MUON,
            {"custom_keys": {"embed": {"decay_mult": 0.0}}},
            "optim_wrapper.paramwise_cfg: a Muon has no weight decay to multiply",
        ),
    ],
)
def test_rules_that_mean_nothing_are_refused(tiny_recipe, optimizer, paramwise, message):
    with pytest.raises(UserError) as caught:
        build(tiny_recipe, optimizer, paramwise)
    assert str(caught.value).startswith(f"recipe: {message}")


def test_what_the_optimizer_refuses_is_one_line(tiny_recipe):
    with pytest.raises(UserError, match=r"^recipe: optim_wrapper\.optimizer: Nesterov momentum requires a momentum"):
        build(tiny_recipe, {"type": "SGD", "lr": 1, "nesterov": True})
