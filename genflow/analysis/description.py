"""What a recipe's graph is and costs: a table, a drawing, and the published numbers beside ours."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from genflow.analysis.flops import GeneratorCost, count_encoder, count_generator, count_macs
from genflow.analysis.operators import NotCountedError, UncountedOperatorError
from genflow.config.building import built_on_meta
from genflow.config.graph import ComponentGraph
from genflow.config.imports import AllowImports
from genflow.errors import UserError, reason
from genflow.feature_encoders.base import FeatureEncoder
from genflow.flow_teachers.base import FlowTeacher
from genflow.methods.base import Method

#: Millions of parameters of an artifact that is built with numbers where it cannot be counted without.
_COUNTED_WITH_NUMBERS = 20


@dataclass(frozen=True)
class NodeCost:
    """One row of a graph's table.

    Args:
        path: place in the recipe.
        kind, type: kind and class name of the component.
        trainable: whether training changes any of its parameters; None without parameters.
        parameters: its parameters, those of components inside it included.
        macs: multiply-adds for one image; None where it is no part of the generator and no flow; text that says why
            where they cannot be counted.
    """

    path: str
    kind: str
    type: str
    trainable: bool | None
    parameters: int
    macs: int | str | None


def build_on_meta(graph: ComponentGraph, objects: dict[str, Any] | None = None, for_training: bool = True) -> Method:
    """Build the model as :func:`~genflow.config.building.built_on_meta` does."""
    objects = {} if objects is None else objects

    def build() -> Method:
        objects.clear()
        return graph.build(objects=objects, for_training=for_training)

    return built_on_meta(build)


def count_recipe(graph: ComponentGraph) -> GeneratorCost:
    """Parameters and multiply-adds of the recipe's generator and decoder, or of the feature encoder that it trains.

    A network that needs numbers to run (``.item()``, arrays of NumPy) has none on the meta device; a small one is then
    built and run with random weights.

    Raises:
        UserError: the recipe trains something else.
        NotCountedError: the network cannot be counted.
    """
    method = build_on_meta(graph, for_training=False)
    where = f"{graph.source}: model"
    try:
        return _count(graph, method)
    except UncountedOperatorError as error:
        raise NotCountedError(f"{where}: {error}") from error
    except UserError:
        raise
    except Exception as error:  # whatever a network does that the meta device, or a trace, cannot
        problem = reason(error)
    millions = sum(parameter.numel() for parameter in method.artifact_module.parameters()) / 1e6
    if millions > _COUNTED_WITH_NUMBERS:
        raise NotCountedError(
            f"{where}: cannot be counted on the meta device ({problem}), and has {millions:.0f} M parameters, above "
            f"the {_COUNTED_WITH_NUMBERS} M up to which a network is run with numbers instead; make its forward pass "
            "free of them (docs/custom_components.md)"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            return _count(graph, graph.build(for_training=False))
    except UncountedOperatorError as error:
        raise NotCountedError(f"{where}: {error}") from error
    except UserError:
        raise
    except Exception as error:
        raise NotCountedError(f"{where}: cannot be counted: {reason(error)}") from error


def cost_or_reason(graph: ComponentGraph) -> GeneratorCost | str:
    """As :func:`count_recipe`, for those who do not depend on it: where it fails, in one line why."""
    try:
        return count_recipe(graph)
    except Exception as error:
        return reason(error)


def _count(graph: ComponentGraph, method: Method) -> GeneratorCost:
    if method.generator is not None:
        return count_generator(method.generator)
    if isinstance(method.artifact_module, FeatureEncoder):
        return count_encoder(method.artifact_module, method.image_shape)
    name = graph.model.cls.__name__
    raise UserError(f"{graph.source}: model: {name} trains neither a generator nor an encoder to count")


def summarize(cost: GeneratorCost | str) -> str:
    """One line for a log."""
    if isinstance(cost, str):
        return f"not counted: {cost}"
    line = f"{cost.generator_params / 1e6:.2f} M parameters, {cost.generator_macs / 1e9:.4g} GMACs per image"
    if cost.decoder_macs:
        line += f", decoder {cost.decoder_params / 1e6:.2f} M, {cost.decoder_macs / 1e9:.4g} GMACs"
    return f"{line}, {cost.nfe} network evaluation(s)"


def figures(cost: GeneratorCost | str) -> dict[str, Any] | str:
    """What ``metrics.json`` says."""
    if isinstance(cost, str):
        return summarize(cost)
    return {name: value for name, value in asdict(cost).items() if name != "by_component"}


def first_paragraph(text: str | None) -> str:
    """What a docstring says first, in one line."""
    return (text or "").strip().split("\n\n")[0].replace("\n", " ").strip()


def system(graph: ComponentGraph) -> str:
    """What the method is, and its papers: what its module says first."""
    return first_paragraph(sys.modules[graph.model.cls.__module__].__doc__)


def describe(graph: ComponentGraph) -> list[NodeCost]:
    """One row per component under the model, parents first."""
    objects: dict[str, Any] = {}
    method = build_on_meta(graph, objects)
    costs: dict[str, int | str] = {}
    places = {}
    if method.generator is not None:
        cost = cost_or_reason(graph)
        costs = {"network": cost} if isinstance(cost, str) else {**cost.by_component, "": cost.generator_macs}
        places = {id(module): path for path, module in method.generator.named_modules()}
    rows = []
    for node, _ in graph.nodes():
        component = objects[node.path]
        parameters = list(component.parameters()) if isinstance(component, nn.Module) else []
        macs = costs.get(places.get(id(component)))
        if macs is None and isinstance(component, FlowTeacher):
            macs = _flow_macs(component)
        rows.append(
            NodeCost(
                node.path,
                node.kind,
                node.cls.__name__,
                any(p.requires_grad for p in parameters) if parameters else None,
                sum(p.numel() for p in parameters),
                macs,
            )
        )
    return rows


def _flow_macs(flow: FlowTeacher) -> int | str:
    """One forward pass of a flow that only teaches, or why it cannot be counted."""
    data = torch.zeros(1, *flow.image_shape, device="meta")
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    try:
        return count_macs(flow, (data, labels), lambda x, c: flow(x, c if flow.num_classes else None).latent).total
    except Exception as error:
        return reason(error)


def graph_table(rows: list[NodeCost]) -> Table:
    """The rows as a table."""
    table = Table(title="components")
    for title in ("node", "kind", "type", "trainable"):
        table.add_column(title, overflow="fold")
    for title in ("parameters", "GMACs"):
        table.add_column(title, justify="right")
    names = {None: "", True: "yes", False: "frozen"}
    for row in rows:
        macs = "not counted" if isinstance(row.macs, str) else "" if row.macs is None else f"{row.macs / 1e9:.4g}"
        table.add_row(row.path, row.kind, row.type, names[row.trainable], f"{row.parameters:,}", macs)
    problems = [f"{row.path}: not counted: {row.macs}" for row in rows if isinstance(row.macs, str)]
    table.caption = "\n".join(problems) or None
    return table


def mermaid(graph: ComponentGraph) -> str:
    """A Mermaid flowchart: components point at what they are built into; prerequisites are dashed."""
    lines = ["flowchart BT"]
    names: dict[str, str] = {}
    edges = []
    for node, children in graph.nodes():
        names.setdefault(node.path, f"n{len(names)}")
        label = node.path.removeprefix("model.").removeprefix("components.")
        shape = ("[[", "]]") if node.path.startswith("prerequisites.") else ("[", "]")
        lines.append(f'  {names[node.path]}{shape[0]}"{label}<br/><b>{node.cls.__name__}</b>"{shape[1]}')
        for child in children:
            names.setdefault(child.path, f"n{len(names)}")
            arrow = "-.->" if child.path.startswith("prerequisites.") else "-->"
            edges.append(f"  {names[child.path]} {arrow} {names[node.path]}")
    return "\n".join([*lines, *edges])


def analyze_recipe(
    path: str, overrides: list[str] | None = None, allow_imports: AllowImports = False
) -> dict[str, Any]:
    """Count a recipe's generator or encoder and compare with what its paper published.

    Returns:
        ``recipe``, the fields of :class:`~genflow.analysis.flops.GeneratorCost`, ``published`` as in the
        recipe, and ``ratio_to_published``, ours divided by theirs for the figures that a count can check.
    """
    graph = ComponentGraph.load(path, overrides, allow_imports=allow_imports)
    cost = count_recipe(graph)
    published = graph.section("published")
    ours = {"params_m": cost.generator_params / 1e6, "gflops": cost.generator_macs / 1e9}
    for name in ours.keys() & published.keys():
        if not isinstance(published[name], (int, float)) or published[name] <= 0:
            raise UserError(f"{path}: published.{name}: found {published[name]!r}, expected a number above 0")
    ratios = {name: value / published[name] for name, value in ours.items() if name in published}
    return {"recipe": Path(path).stem, **asdict(cost), "published": published, "ratio_to_published": ratios}
