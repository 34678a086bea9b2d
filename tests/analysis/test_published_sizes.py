"""Parameters of the ImageNet recipes in all sizes (BiFlow spec, item 35)."""

from pathlib import Path

import pytest

from genflow.analysis.description import build_on_meta
from genflow.graph import ComponentGraph
from genflow.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("itarflow_b2", 119.77),
        ("itarflow_m2", 210),
        ("itarflow_l2", 392),
        ("itarflow_xl2", 692.6),
        ("biflow_b2", 133.9),
        ("biflow_m2", 235),
        ("biflow_l2", 424),
        ("biflow_xl2", 749),
    ],
)
def test_parameters(recipe, millions):
    pytest.importorskip("diffusers")
    graph = ComponentGraph.from_recipe(load_recipe(RECIPES / f"{recipe}_imagenet.yaml"))
    generator = build_on_meta(graph, for_training=False).generator
    count = sum(parameter.numel() for parameter in generator.network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)
    published = graph.settings().published.get("params_m")
    assert published is None or count == pytest.approx(published, rel=0.01)
    width = {"b2": 768, "m2": 1024, "l2": 1152, "xl2": 1536}[recipe.split("_")[1]]
    if recipe.startswith("biflow"):  # both stages of a size have one width
        assert build_on_meta(graph, for_training=False).teacher.flow_blocks[0].out.in_features == width
        assert generator.network.state_features == width
