"""Estimate how an update of a recipe divides among many GPUs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from genflow.cli.parser import Parser, check_json, recipe
from genflow.cli.progress import console, progress_bar


def main() -> None:
    parser = Parser(
        "Estimate seconds of an update and hours of a training on many GPUs, from counted multiply-adds and the rates "
        "of a data sheet (H100 SXM in nodes of 8). Arithmetic, not measurements: docs/scaling.md has the formulas.",
        "python tools/scaling.py recipes/pmf_b16_imagenet256.yaml --gpus 8 64 512 --share 0.35",
    )
    parser.add_argument(
        "recipes", type=recipe, nargs="+", metavar="RECIPE", help="YAML recipes, or names of GenFlow's own"
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512], help="numbers of GPUs (default: 8 64 512)")
    parser.add_argument(
        "--share", type=float, default=0.35, help="what networks reach of the rate in bfloat16 (default: 0.35)"
    )
    parser.add_argument(
        "--launch",
        type=float,
        default=5.0,
        help="microseconds in which the host starts an operator, compiled or not; 0 leaves it out (default: 5)",
    )
    parser.add_argument(
        "--recipe-gpus",
        type=int,
        default=8,
        help="GPUs that the recipe's micro_batches are meant for; with others they keep their size (default: 8)",
    )
    parser.add_json("write the figures as a list of objects")
    parser.add_overrides()
    parser.add_imports()
    arguments = parser.parse_args()
    for name, count in (("gpus", min(arguments.gpus)), ("recipe-gpus", arguments.recipe_gpus)):
        if count < 1:
            parser.error(f"--{name}: found {count}, expected a number above 0")
    if not 0 < arguments.share <= 1:
        parser.error(f"--share: found {arguments.share}, expected a number above 0 and at most 1")
    if not 0 <= arguments.launch <= 1e6:
        parser.error(f"--launch: found {arguments.launch}, expected 0 to 1,000,000 microseconds")
    check_json(arguments.json, arguments.overwrite)

    from genflow.analysis.scaling import Machine, estimate, sharded_traffic
    from genflow.config.graph import ComponentGraph
    from genflow.engine.update_cost import count_updates
    from genflow.weights import write_text

    machine = Machine(reduced_share=arguments.share, launch=1e-6 * arguments.launch)
    records, refused = [], []
    with progress_bar("counting") as bar:
        for path in bar.track(arguments.recipes):
            graph = ComponentGraph.load(path, arguments.cfg_options, allow_imports=arguments.allow_imports)
            updates = graph.section("train_cfg").max_iters
            for gpus, cost in count_updates(graph, arguments.gpus, arguments.recipe_gpus).items():
                if isinstance(cost, str):
                    refused.append(f"{Path(path).stem}, {gpus} GPUs: {cost}")
                    continue
                found = estimate(cost, machine)
                derived = {"seconds": found.seconds, "updates": updates, "hours": found.hours(updates)}
                sharded = {"sharded": dataclasses.asdict(sharded_traffic(cost, machine))}
                counted = {"recipe": Path(path).stem, **dataclasses.asdict(cost), **dataclasses.asdict(found)}
                records.append(counted | derived | sharded)
    for table in (_times(records), _bytes(records)):
        console().print(table)
    for line in refused:
        console().print(line)
    if arguments.json:
        write_text(arguments.json, json.dumps(records, indent=2) + "\n")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=box.MARKDOWN)
    for name in columns:
        table.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=True)
    return table


def _times(records: list[dict]) -> Table:
    columns = "recipe|GPUs|parts x rows|TMACs|fp32|networks|sum|exposed|step|update|efficiency|hours"
    table = _table("one process; milliseconds, estimated, not measured", columns.split("|"))
    first: dict[str, dict] = {}
    for record in records:
        base = first.setdefault(record["recipe"], record)
        efficiency = base["seconds"] * base["gpus"] / (record["seconds"] * record["gpus"])
        reduced, full = (record["forward"][kind] + record["backward"][kind] for kind in ("reduced", "full"))
        table.add_row(
            record["recipe"],
            str(record["gpus"]),
            f"{record['parts']} x {record['rows'] / record['parts']:g}",
            *(_figure(macs / 1e12) for macs in (reduced, full)),
            _figure(1e3 * record["networks"]) + (" host" if record["host_bound"] else ""),
            *(_figure(1e3 * record[name]) for name in ("communication", "exposed", "step", "seconds")),
            f"{100 * efficiency:.0f} %",
            f"{record['hours']:,.1f}",
        )
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(records: list[dict]) -> Table:
    from genflow.analysis.scaling import ring_gather

    columns = "recipe|GPUs|M parameters|bytes each|GB|frozen|DDP|gather|full fp32|full bf16|hybrid in|hybrid out"
    title = "one process; GB in its memory, and GB that it sends in an update: under DDP, fully sharded with weights "
    title += "in fp32 or bf16, hybrid in fp32 within and out of its node, and in any case for the optimizer"
    table = _table(title, columns.split("|"))
    for record in records:
        resident = dict(record["resident"])
        frozen, sharded = resident.pop("frozen"), record["sharded"]
        trained = sum(resident.values())
        gather = ring_gather(record["gathered"], record["sharers"])
        sent = (record["sent"], gather, sharded["float32"], sharded["bfloat16"], sharded["within"], sharded["between"])
        table.add_row(
            record["recipe"],
            str(record["gpus"]),
            f"{record['parameters'] / 1e6:.1f}",
            f"{trained / record['parameters']:.1f}",
            f"{trained / 1e9:.2f}",
            f"{frozen / 1e9:.2f}",
            *(_figure(size / 1e9) for size in sent),
        )
    return table
