"""Recipes of older run folders, read in today's words."""

import copy

import pytest

from genflow import ComponentGraph, UserError, load_recipe
from genflow.config.recipe import dump_yaml
from genflow.config.upgrade import upgrade

BACKBONE = {"type": "PixelTransformer", "image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}


def old(component="PixelTransformer", training=None, **settings):
    backbone = {"type": component, "width": 16, **settings}
    return {"model": {"type": "MeanFlow", "backbone": backbone}, "train_cfg": {"max_iters": 3, **(training or {})}}


def test_settings_of_backbones_become_settings_of_training():
    recipe = old(checkpointing=True, compile=False)
    upgrade(recipe)
    assert recipe == old(training={"checkpointing": True})
    recipe = old("LightningDiT", checkpointing=True)
    upgrade(recipe)
    assert recipe == old("LightningDiT", training={"checkpointing": True})
    recipe = old(checkpointing=True, compile=True, training={"checkpointing": False})
    upgrade(recipe)  # what is said today counts
    assert recipe == old(training={"checkpointing": False, "compile": True})


def test_settings_are_found_in_shared_components_lists_and_prerequisites():
    recipe = old() | {"components": {"net": old(checkpointing=True)["model"]["backbone"]}}
    recipe["model"]["many"] = [{"type": "PixelTransformer", "compile": True}]
    recipe["prerequisites"] = {"teacher": {"name": "t", "recipe": old("LightningDiT", checkpointing=True)}}
    upgrade(recipe)
    assert recipe["train_cfg"] == {"max_iters": 3, "checkpointing": True, "compile": True}
    assert recipe["components"]["net"] == old()["model"]["backbone"]
    assert recipe["model"]["many"] == [{"type": "PixelTransformer"}]
    inner = recipe["prerequisites"]["teacher"]["recipe"]
    assert inner == old("LightningDiT", training={"checkpointing": True})


def test_other_components_and_broken_recipes_are_left_alone():
    for recipe in (
        old("GroupedMLP", checkpointing=True),
        old("LightningDiT", compile=True),
        {"model": {"type": ["PixelTransformer"], "checkpointing": True}},
        {"model": 3, "components": None, "prerequisites": [1]},
    ):
        before = copy.deepcopy(recipe)
        upgrade(recipe)
        assert recipe == before


def test_an_old_run_opens(tmp_path, tiny_recipe):
    """Its backbone's settings in ``train_cfg``, its module where it is now."""
    backbone = {**BACKBONE, "channels": 1, "num_classes": 10, "head_depth": 1, "checkpointing": True, "compile": False}
    model = {
        "type": "MeanFlow",
        "backbone": backbone,
        "field": {"type": "AverageVelocity"},
        "times": {"type": "LogitNormalTimes", "mean": 0.0, "std": 1.0},
        "codec": tiny_recipe["model"]["codec"],
        "loss": {"type": "SquaredError"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml({**tiny_recipe, "model": model, "custom_imports": ["genflow.analysis.drift_toy"]}))
    assert "checkpointing" not in load_recipe(path)["model"]["backbone"]
    graph = ComponentGraph.load(path)
    section = graph.section("train_cfg")
    assert (section.max_iters, section.checkpointing, section.compile) == (3, True, False)
    with pytest.raises(UserError, match=r"backbone\.widht: PixelTransformer has no argument 'widht'"):
        ComponentGraph.load(path, ["model.backbone.widht=3"])
