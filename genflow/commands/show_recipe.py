"""Show what a recipe builds."""

from genflow.cli.parser import Parser, recipe
from genflow.cli.progress import console


def main() -> None:
    parser = Parser(
        "Print a recipe's components with their parameters and multiply-adds, a Mermaid drawing, "
        "and the resolved YAML.",
        "python tools/show_recipe.py recipes/biflow_digits.yaml",
    )
    parser.add_argument("recipe", type=recipe, help="YAML recipe, or name of GenFlow's own")
    parser.add_overrides()
    parser.add_imports()
    arguments = parser.parse_args()

    from genflow.analysis.description import describe, graph_table, mermaid
    from genflow.config.graph import ComponentGraph
    from genflow.config.recipe import dump_yaml

    graph = ComponentGraph.load(arguments.recipe, arguments.cfg_options, allow_imports=arguments.allow_imports)
    console().print(graph_table(describe(graph)))
    print(f"\n```mermaid\n{mermaid(graph)}\n```\n\n{dump_yaml(graph.plain)}", end="")
