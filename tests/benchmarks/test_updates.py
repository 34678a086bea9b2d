"""Updates on made-up data, with random weights where files are missing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from genflow.benchmarks.updates import Updating, drawn_on, load_share
from genflow.errors import UserError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = [
    *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "layers=1", "groups=2")),
    *(f"prerequisites.teacher.recipe.model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2")),
]


def recipe(name):
    return str(ROOT / "recipes" / f"{name}.yaml")


def test_share_of_a_process():
    graph = load_share(recipe("drift_ablation_imagenet"), [], 8)
    data = graph.section("train_dataloader")
    assert data.batch_size == 128 and data.dataset.image_shape == (4, 32, 32) and data.dataset.num_classes == 1000
    assert graph.model.arguments["labels_per_update"] == 8
    batch = data.dataset.batch(torch.arange(5), None)
    assert batch["images"].shape == (5, 4, 32, 32) and -1 <= batch["images"].min() < -0.9 < 0.9 < batch["images"].max()
    with pytest.raises(UserError, match="labels_per_update: found 10, expected a multiple of 4 processes"):
        load_share(recipe("drift_digits"), [], 4)


def test_updates_of_a_recipe_with_a_prerequisite_change_nothing():
    training = Updating(load_share(recipe("biflow_digits"), TINY), CPU)
    before = {name: value.detach().clone() for name, value in training.method.named_parameters()}
    assert all(value.any() for value in before.values())  # no branch is idle
    figures = [training.update(training.read()) for _ in range(2)]
    assert all(entry["grad_norm"] > 0 for entry in figures) and figures[0]["loss"] != figures[1]["loss"]
    for name, value in training.method.named_parameters():
        assert torch.allclose(value, before[name], atol=1e-6), name
    again = Updating(load_share(recipe("biflow_digits"), TINY), CPU).method
    assert all(torch.equal(value, before[name]) for name, value in again.named_parameters())


def test_weights_that_files_would_hold_are_random():
    options = ["model.perceptual={terms: {convnext: {loss: {type: FeatureDistance, encoder: {type: ConvNeXtV2"]
    options[0] += ", variant: atto, depths: [1, 1, 1, 1], widths: [8, 8, 8, 8]}}, weight: 1.0}}, crop: 64}"
    options += ["model.noise_scale=1.0", "model.backbone.width=16", "model.backbone.heads=2"]
    training = Updating(load_share(recipe("pmf_digits"), options), CPU)
    first = training.update(training.read())
    assert first["perceptual_convnext"] > 0


def test_initial_weights_are_drawn_late_and_once():
    with drawn_on(CPU) as networks:
        linear = nn.Linear(64, 64)
        nn.init.normal_(linear.weight, std=3.0)  # in the place of the layer's own
        nn.init.zeros_(linear.bias)
        networks.append(linear)
    assert 2.8 < linear.weight.std() < 3.2
    assert 0 < linear.bias.abs().max() < 0.1  # which training starts at zero
    assert nn.init.normal_.__module__ == "torch.nn.init"
