"""The table of a graph's components, and its drawing."""

import re
from pathlib import Path

from genflow import ComponentGraph
from genflow.analysis.description import describe, mermaid

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = [
    *(f"prerequisites.teacher.recipe.model.flow.{entry}" for entry in ("width=16", "head_width=8", "blocks=2")),
    "prerequisites.teacher.recipe.model.flow.layers=1",
    *(f"model.inverse.backbone.{entry}" for entry in ("width=16", "heads=2", "groups=2", "layers=1")),
    "model.inverse.backbone.denoise_layers=1",
]


def small_biflow(*overrides):
    return ComponentGraph.load(RECIPES / "biflow_digits.yaml", [*SMALL, *overrides])


def test_describe_counts_every_component():
    graph = small_biflow()
    rows = {row.path: row for row in describe(graph)}
    assert next(iter(rows)) == "model"
    assert list(rows).index("model.inverse") < list(rows).index("model.inverse.backbone")  # parents first
    assert len(rows) == len(list(graph.nodes())) == 10
    method = graph.build()
    count = {"model": method, "prerequisites.teacher": method.teacher, "model.inverse": method.inverse}
    count |= {"model.inverse.backbone": method.inverse.backbone}
    for path, module in count.items():
        assert rows[path].parameters == sum(value.numel() for value in module.parameters()) > 0
    # A component's own parameters are what its children do not hold.
    assert rows["model"].parameters == rows["prerequisites.teacher"].parameters + rows["model.inverse"].parameters
    projections = sum(value.numel() for value in method.inverse.projections.parameters())
    assert rows["model.inverse"].parameters == rows["model.inverse.backbone"].parameters + projections
    assert (rows["prerequisites.teacher"].kind, rows["prerequisites.teacher"].type) == ("flow teacher", "TARFlow")
    assert rows["prerequisites.teacher"].trainable is False
    assert rows["model.inverse.backbone"].trainable is True
    assert rows["model.reconstruction"].trainable is None and rows["model.reconstruction"].parameters == 0
    assert rows["model.inverse.backbone"].macs > 16 * 16 * 16 and rows["prerequisites.teacher"].macs > 16 * 16 * 16
    assert rows["model.inverse.loss"].macs is None


def test_describe_counts_a_shared_component_once():
    graph = small_biflow(
        "components={d: {type: SquaredError}}", "model.inverse.loss.loss=$d", "model.reconstruction.loss=$d"
    )
    assert [row.path for row in describe(graph)].count("components.d") == 1


def test_mermaid_draws_every_component_and_prerequisites_dashed():
    graph = small_biflow("components={d: {type: SquaredError}}", "model.reconstruction=$d")
    lines = mermaid(graph).splitlines()
    assert lines[0] == "flowchart BT"
    boxes = dict(re.findall(r'^  (n\d+)\[+"(.+?)<br/>', "\n".join(lines), re.M))
    expected = {node.path.removeprefix("model.").removeprefix("components.") for node, _ in graph.nodes()}
    assert set(boxes.values()) == expected and len(boxes) == len(expected)
    edges = {
        (boxes[child], boxes[parent]): arrow
        for child, arrow, parent in re.findall(r"^  (n\d+) (-->|-\.->) (n\d+)$", "\n".join(lines), re.M)
    }
    assert len(lines) == 1 + len(boxes) + len(edges)
    dashed = {edge for edge, arrow in edges.items() if arrow == "-.->"}
    assert dashed == {("prerequisites.teacher", "model")}
    assert ("d", "model") in edges and ("inverse.backbone", "inverse") in edges


def test_a_generator_that_is_trained_further_is_described_by_its_network():
    rows = {row.path: row for row in describe(ComponentGraph.load(RECIPES / "pmf_digits_post.yaml"))}
    start = rows["prerequisites.start"]
    assert (start.kind, start.type) == ("backbone", "PixelTransformer")
    assert start.trainable is True and start.parameters > 0 and start.macs > 0
