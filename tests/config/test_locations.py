"""Paths in a resolved recipe: absolute, whatever folder they were relative to."""

import os
from pathlib import Path

import pytest

from genflow.config.graph import ComponentGraph

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_recipe["train_dataloader"]["dataset"] = {"type": "ImageFolder", "data_root": "my data", "image_size": 8}
    return tiny_recipe


def test_paths_become_absolute_and_nothing_else_does(recipe, tmp_path):
    recipe["init_from"] = "../other/run"
    recipe["published"] = {"weights": "nowhere"}
    recipe["components"] = {"codec": {"type": "SDVAE", "image_size": 64, "weights": "vae"}}
    recipe["model"] = {
        "type": "MaximumLikelihood",
        "codec": "$codec",
        "noise_std": 0.1,
        "flow": recipe["model"]["flow"],
    }
    plain = ComponentGraph.from_recipe(recipe).plain
    assert plain["train_dataloader"]["dataset"]["data_root"] == str(tmp_path / "my data")
    assert plain["components"]["codec"]["weights"] == str(tmp_path / "vae")
    assert plain["init_from"] == os.path.abspath("../other/run")
    assert plain["published"] == {"weights": "nowhere"} and plain["model"]["codec"] == "$codec"
    assert recipe["train_dataloader"]["dataset"]["data_root"] == "my data"  # the caller's


def test_an_absolute_path_stays_and_none_too(recipe):
    recipe["train_dataloader"]["dataset"]["data_root"] = "/data/my pictures"
    recipe["evaluation"] = None
    plain = ComponentGraph.from_recipe(recipe).plain
    assert plain["train_dataloader"]["dataset"]["data_root"] == "/data/my pictures" and plain["evaluation"] is None


def test_a_prerequisites_too(recipe, tmp_path):
    data = {"type": "ImageFolder", "data_root": "my data", "image_size": 8}
    overrides = {"prerequisites.teacher.run": "t", "prerequisites.teacher.recipe.train_dataloader.dataset": data}
    entry = ComponentGraph.load(RECIPES / "biflow_digits.yaml", overrides).plain["prerequisites"]["teacher"]
    assert entry["recipe"]["train_dataloader"]["dataset"]["data_root"] == str(tmp_path / "my data")
    assert entry["run"] == str(tmp_path / "t") and entry["name"] == "itarflow_digits"
