"""Time parts of GenFlow against each other."""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from genflow.cli.parser import Parser, check_json, recipe, subparser
from genflow.cli.progress import console, progress_bar
from genflow.config.recipe_files import RECIPES

#: Of every benchmark: its module in genflow.benchmarks, and there its options, computation and table.
BENCHMARKS = {
    "inverse": ("inverse", "InverseOptions", "benchmark_inverse", "inverse_table"),
    "train-step": ("train_step", "TrainStepOptions", "benchmark_train_step", "train_step_table"),
    "drift-loss": ("drift_loss", "DriftLossOptions", "benchmark_drift_loss", "drift_loss_table"),
    "distance": ("distance", "DistanceOptions", "benchmark_distance", "distance_table"),
    "data": ("data", "DataOptions", "benchmark_data", "data_table"),
}
PRECISIONS = ["float32", "bfloat16"]


def main() -> None:
    arguments = parse()
    if arguments.benchmark == "suite":
        sys.exit(run_suite(arguments))

    check_json(arguments.json, arguments.overwrite)

    from genflow.weights import write_text

    report, table = run(arguments)
    console().print(table)
    figures = f"{report['ratio']:.4g} times ({report['low']:.4g} to {report['high']:.4g})"
    print(f"{report['benchmark']}: {figures}; {describe_machine(report)}")
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = Parser(
        "Time two computations in turn in one process: medians, extremes of their ratio, hardware and versions.",
        "python tools/benchmark.py inverse recipes/biflow_b2_imagenet.yaml --repeats 3 --json inverse.json",
    )
    commands = parser.add_subparsers(
        title="benchmarks (each with --help of its own)",
        metavar="BENCHMARK",
        dest="benchmark",
        required=True,
        parser_class=_command,
    )
    inverse = commands.add_parser(
        "inverse",
        help="one pass of BiFlow against the exact inverse of its flow",
        description="Time one pass of BiFlow's reverse model against the exact inverse of its flow, from the same "
        "noise; a recipe gets random weights.",
        example="python tools/benchmark.py inverse recipes/biflow_b2_imagenet.yaml --batch 1 8 --repeats 3",
    )
    inverse.add_argument("subject", type=recipe, metavar="RUN|RECIPE", help="run folder, or YAML recipe")
    inverse.add_argument(
        "--batch", type=int, nargs="+", dest="batches", help="batch sizes (default: 1 8; on a GPU 1 2 4 ... 256)"
    )
    inverse.add_argument("--guidance", type=float, default=0.0, help="guidance scale of both sides (default: 0, none)")
    inverse.add_argument("--precision", choices=PRECISIONS, default="float32", help="of both sides")
    inverse.add_argument("--compile", action="store_true", help="compile the one-pass side")
    inverse.add_argument("--score", action="store_true", help="end the exact inverse with its score step")
    inverse.add_argument(
        "--decoder", action="store_true", help="time decoding as well; a VAE without weights gets random ones"
    )
    inverse.add_argument("--decode-batch", type=int, default=32, metavar="N", help="images decoded at once, at most")

    step = commands.add_parser(
        "train-step",
        help="a training step of pMF against the plain way to compute it",
        description="Time forward and backward pass of a training step against the plain way: one differentiation "
        "with its graph over attention that is not fused, every head and every call computed.",
        example="python tools/benchmark.py train-step recipes/pmf_b16_imagenet256.yaml --reduced --json step.json",
    )
    step.add_argument("subject", type=recipe, metavar="RECIPE", help="YAML recipe of a MeanFlow")
    step.add_argument("--batch", type=int, default=8, help="rows per step (default: 8)")
    step.add_argument("--reduced", action="store_true", help="a model of the same tokens that a CPU can train")
    step.add_argument("--precision", choices=PRECISIONS, default="float32", help="of products")
    step.add_argument("--compile", action="store_true", help="compile the layers of our step")
    step.add_argument("--perceptual", action="store_true", help="keep the perceptual terms, which need weights")

    loss = commands.add_parser(
        "drift-loss",
        help="the drift loss of a recipe's features against its formulas, line by line",
        description="Time the drift loss and its gradient with respect to random features, of the shapes that the "
        "recipe's encoders give, against a direct transcription of its formulas, feature by feature.",
        example="python tools/benchmark.py drift-loss recipes/drift_ablation_imagenet.yaml --reduced --repeats 2",
    )
    loss.add_argument("subject", type=recipe, metavar="RECIPE", help="YAML recipe of a Drifting")
    loss.add_argument("--reduced", action="store_true", help="one label per update, which a CPU can hold")
    loss.add_argument(
        "--precision", choices=PRECISIONS, help="of the features (default: that of the recipe's training)"
    )

    distance = commands.add_parser(
        "distance",
        help="distances between distributions against their formulas, and beside the generator's pass",
        description="Time value and derivative of every distance between random features against a direct "
        "transcription of its formula, and beside the passes of a generator that a batch takes.",
        example="python tools/benchmark.py distance --width 768 --batch 1024 --repeats 3",
        of_recipe=False,
    )
    distance.add_argument("--width", type=int, default=768, metavar="N", help="channels of the features (default: 768)")
    distance.add_argument("--batch", type=int, default=1024, metavar="N", help="samples of each side (default: 1024)")
    distance.add_argument(
        "--recipe",
        type=recipe,
        default="pmf_b16_imagenet256",
        help="whose generator runs beside, with random weights (default: pmf_b16_imagenet256)",
    )
    distance.add_device()

    data = commands.add_parser(
        "data",
        help="pictures and latents per second, and what limits them",
        description="Time on one thread, from a temporary folder of random content: decoding and cropping JPEGs, and "
        "reading packed pictures and latents as training gets them; beside each what limits it.",
        example="python tools/benchmark.py data --repeats 5 --json data.json",
        of_recipe=False,
    )
    data.add_argument("--pictures", type=int, default=64, metavar="N", help="JPEGs of 500x375 pixels (default: 64)")
    data.add_argument("--packed", type=int, default=2000, metavar="N", help="packed pictures (default: 2000, 393 MB)")
    data.add_argument("--latents", type=int, default=20_000, metavar="N", help="latents (default: 20000, 655 MB)")
    data.add_argument("--batch", type=int, default=256, metavar="N", help="of packed ones (default: 256)")
    _add_suite(commands)
    return parser.parse_args()


def _add_suite(commands: Any) -> None:
    suite = commands.add_parser(
        "suite",
        help="everything that a GPU has to be asked for, within minutes, as one report",
        description="Measure updates, sampling, both inverses and their parts, each in a process of its own, the most "
        "important first, as long as there is time. What fails is a line of the report, and the suite goes on.",
        example="python tools/benchmark.py suite --minutes 20 --out work_dirs/benchmark_suite",
        timed=False,
    )
    suite.add_argument("--minutes", type=float, default=20.0, metavar="N", help="in all (default: 20)")
    suite.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="these entries: hardware, update-RECIPE, compiled-RECIPE, inverse-RECIPE, drift-loss, train-step, "
        "muon-RECIPE, draws, sampling, gpu-tests, data, training-RECIPE and so on, as suite.json calls them",
    )
    suite.add_argument("--small", action="store_true", help="a size for a CPU (default without a GPU)")
    suite.add_device()
    suite.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/benchmark_suite"),
        help="folder for suite.json, suite.md and logs (default: work_dirs/benchmark_suite)",
    )
    suite.add_argument("--overwrite", action="store_true", help="replace the report that is there")
    suite.add_argument("--resume", action="store_true", help="go on with the report: entries that it lacks")


def _command(prog: str, description: str, example: str, of_recipe: bool = True, timed: bool = True, **_: Any) -> Parser:
    """The parser of one benchmark, with the options that all timed ones share, or all that measure a recipe."""
    parser = subparser(prog, description, example)
    if not timed:
        return parser
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each side (default: 5)")
    parser.add_json("write the figures, every run, hardware and versions")
    if of_recipe:
        parser.add_device()
        parser.add_overrides()
        parser.add_imports()
    return parser


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """The report of a benchmark and its table; the names of its options are those of the arguments."""
    name, *parts = BENCHMARKS[arguments.benchmark]
    module = importlib.import_module(f"genflow.benchmarks.{name}")
    make_options, measure, make_table = (getattr(module, part) for part in parts)
    options = make_options(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(make_options)})
    inputs = (arguments.subject, options, arguments.cfg_options) if "subject" in arguments else (options,)
    with progress_bar("timing") as bar:
        task = bar.add_task("", total=options.runs)
        report = measure(*inputs, lambda: bar.advance(task))
    return report, make_table(report)


def run_suite(arguments: argparse.Namespace) -> int:
    """Measure the suite; returns the exit code, 1 if an entry failed."""
    from genflow.benchmarks import suite
    from genflow.benchmarks.suite_entries import entries

    on_gpu = arguments.device.startswith("cuda")
    size = "full" if on_gpu and not arguments.small else "small"
    plan = entries(size, arguments.only)
    places = {"out": arguments.out, "recipes": RECIPES, "size": size, "device": arguments.device}
    choices = {name: getattr(arguments, name) for name in ("minutes", "overwrite", "resume")}
    options = suite.SuiteOptions(**places, **choices)
    if not (on_gpu or arguments.small):
        print("there is no GPU: the small suite, as with --small")
    with progress_bar("{task.description}") as bar:
        task = bar.add_task("", total=sum(entry.seconds for entry in plan))

        def tick(name: str, done: float, total: float) -> None:
            bar.update(task, description=name, completed=done, total=total)

        report = suite.run_suite(plan, options, tell, tick, again=arguments.only or ())
    states = [report.state(entry.name) for entry in plan]
    counts = {state: states.count(state) for state in ("done", "failed", "skipped", "left out")}
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    print(f"{arguments.out / suite.PAGE} and {suite.REPORT}; what the entries printed: {arguments.out / suite.LOGS}")
    return 1 if counts["failed"] else 0


def tell(line: str) -> None:
    print(line, flush=True)


def describe_machine(report: dict[str, Any]) -> str:
    hardware, versions = report["hardware"], report["versions"]
    name = hardware.get("gpu", f"{hardware['cpu']}, {hardware['threads']} threads, load {hardware['load']:.1f}")
    return f"{name}; " + ", ".join(f"{what} {version}" for what, version in versions.items())
