"""Count parameters and multiply-adds of recipes' generators and encoders."""

import json

from rich.table import Table

from genflow.cli.parser import Parser, check_json, recipe
from genflow.cli.progress import console, progress_bar


def main() -> None:
    parser = Parser(
        "Count parameters and multiply-adds (one multiply-add counts as one) of generators and decoders, "
        "or of feature encoders, without training-only parts, beside the recipes' published numbers.",
        "python tools/analyze_flops.py recipes/*_imagenet.yaml --by-component --json flops.json",
    )
    parser.add_argument(
        "recipes", type=recipe, nargs="+", metavar="RECIPE", help="YAML recipes, or names of GenFlow's own"
    )
    parser.add_argument("--by-component", action="store_true", help="also list the multiply-adds of each submodule")
    parser.add_json("write the figures as a list of objects")
    parser.add_overrides()
    parser.add_imports()
    arguments = parser.parse_args()
    check_json(arguments.json, arguments.overwrite)

    from genflow.analysis.description import analyze_recipe
    from genflow.weights import write_text

    analyses = []
    with progress_bar("counting") as bar:
        for path in bar.track(arguments.recipes):
            analyses.append(analyze_recipe(path, arguments.cfg_options, arguments.allow_imports))
    console().print(_table(analyses))
    if arguments.by_component:
        for analysis in analyses:
            console().print(_component_table(analysis))
    if arguments.json:
        records = [{key: value for key, value in entry.items() if key != "by_component"} for entry in analyses]
        write_text(arguments.json, json.dumps(records, indent=2) + "\n")


def _table(analyses: list[dict]) -> Table:
    table = Table(title="one image; M parameters, GMACs; in brackets ours / published")
    for title in ("recipe", "generator M", "GMACs", "decoder M", "GMACs", "total GMACs", "NFE", "published"):
        table.add_column(title, justify="left" if title == "recipe" else "right", overflow="fold")
    for entry in analyses:
        ratios = entry["ratio_to_published"]
        total = entry["generator_macs"] + entry["decoder_macs"]
        table.add_row(
            entry["recipe"],
            _with_ratio(entry["generator_params"] / 1e6, ratios.get("params_m")),
            _with_ratio(entry["generator_macs"] / 1e9, ratios.get("gflops")),
            f"{entry['decoder_params'] / 1e6:.2f}",
            f"{entry['decoder_macs'] / 1e9:.4g}",
            f"{total / 1e9:.4g}",
            str(entry["nfe"]),
            ", ".join(f"{name} {value}" for name, value in entry["published"].items() if name != "source"),
        )
    return table


def _with_ratio(value: float, ratio: float | None) -> str:
    return f"{value:.4g}" + ("" if ratio is None else f" ({ratio:.3f})")


def _component_table(analysis: dict) -> Table:
    table = Table(title=f"{analysis['recipe']}: GMACs by component")
    table.add_column("component", overflow="fold")
    table.add_column("GMACs", justify="right")
    for name, macs in analysis["by_component"].items():
        if name.count(".") <= 2:
            table.add_row(name, f"{macs / 1e9:.4g}")
    return table
