"""Time parts of GenFlow against each other."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from genflow.cli.parser import Parser, default_device, device, run_tool
from genflow.cli.progress import console, progress_bar


def main() -> None:
    parser = Parser(
        "Time two computations in turn in one process: medians, extremes of their ratio, hardware and versions.",
        "python tools/benchmark.py inverse recipes/biflow_b2_imagenet.yaml --repeats 3 --json inverse.json",
    )
    commands = parser.add_subparsers(
        title="benchmarks (each with --help of its own)", metavar="BENCHMARK", required=True, parser_class=_command
    )
    _add_inverse(commands)
    _add_train_step(commands)
    _add_drift_loss(commands)
    arguments = parser.parse_args()

    from genflow.errors import UserError
    from genflow.weights import write_text

    if arguments.json and arguments.json.is_dir():
        raise UserError(f"--json: '{arguments.json}' is a folder")
    report, table = arguments.run(arguments)
    console().print(table)
    figures = f"{report['ratio']:.4g} times ({report['low']:.4g} to {report['high']:.4g})"
    print(f"{report['benchmark']}: {figures}; {_machine(report)}")
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")


def _command(prog: str, description: str, example: str, **_: Any) -> Parser:
    """The parser of one benchmark, with the options that all of them share."""
    parser = Parser(description, example)
    parser.prog = prog
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each side (default: 5)")
    parser.add_argument("--device", type=device, default=default_device())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, every run, hardware and versions")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override recipe entries")
    return parser


def _timed(options: Any, measure: Callable[[Callable[[], None]], dict[str, Any]]) -> dict[str, Any]:
    """The report of a benchmark of ``options.runs`` runs, each of which it tells by a call."""
    with progress_bar("timing") as bar:
        task = bar.add_task("", total=options.runs)
        return measure(lambda: bar.advance(task))


def _add_inverse(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inverse",
        help="one pass of BiFlow against the exact inverse of its flow",
        description="Time one pass of BiFlow's reverse model against the exact inverse of its flow, from the same "
        "noise; a recipe gets random weights.",
        example="python tools/benchmark.py inverse recipes/biflow_b2_imagenet.yaml --batch 1 8 --repeats 3",
    )
    parser.add_argument("subject", metavar="RUN|RECIPE", help="run folder, or YAML recipe")
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes (default: 1 8; on a GPU 1 2 4 ... 256)")
    parser.add_argument("--guidance", type=float, default=0.0, help="guidance scale of both sides (default: 0, none)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of both sides")
    parser.add_argument("--compile", action="store_true", help="compile the one-pass side")
    parser.add_argument("--score", action="store_true", help="end the exact inverse with its score step")
    parser.add_argument(
        "--decoder", action="store_true", help="time decoding as well; a VAE without weights gets random ones"
    )
    parser.add_argument("--decode-batch", type=int, default=32, metavar="N", help="images decoded at once, at most")
    parser.set_defaults(run=_run_inverse)


def _run_inverse(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from genflow.benchmarks.inverse import InverseOptions, benchmark_inverse, inverse_table

    options = InverseOptions(
        arguments.batch,
        arguments.repeats,
        arguments.guidance,
        arguments.precision,
        arguments.compile,
        arguments.score,
        arguments.decoder,
        arguments.decode_batch,
        arguments.device,
    )
    report = _timed(options, partial(benchmark_inverse, arguments.subject, options, arguments.cfg_options))
    return report, inverse_table(report)


def _add_train_step(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train-step",
        help="a training step of pMF against the plain way to compute it",
        description="Time forward and backward pass of a training step against the plain way: one differentiation "
        "with its graph over attention that is not fused, every head and every call computed.",
        example="python tools/benchmark.py train-step recipes/pmf_b16_imagenet256.yaml --reduced --json step.json",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML recipe of a MeanFlow")
    parser.add_argument("--batch", type=int, default=8, help="rows per step (default: 8)")
    parser.add_argument("--reduced", action="store_true", help="a model of the same tokens that a CPU can train")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of products")
    parser.add_argument("--compile", action="store_true", help="compile the layers of our step")
    parser.add_argument("--perceptual", action="store_true", help="keep the perceptual terms, which need weights")
    parser.set_defaults(run=_run_train_step)


def _run_train_step(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from genflow.benchmarks.train_step import TrainStepOptions, benchmark_train_step, train_step_table

    options = TrainStepOptions(
        arguments.batch,
        arguments.repeats,
        arguments.reduced,
        arguments.precision,
        arguments.compile,
        arguments.perceptual,
        arguments.device,
    )
    report = _timed(options, partial(benchmark_train_step, arguments.recipe, options, arguments.cfg_options))
    return report, train_step_table(report)


def _add_drift_loss(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "drift-loss",
        help="the drift loss of a recipe's features against its formulas, line by line",
        description="Time the drift loss and its gradient with respect to random features, of the shapes that the "
        "recipe's encoders give, against a direct transcription of its formulas, feature by feature.",
        example="python tools/benchmark.py drift-loss recipes/drift_ablation_imagenet.yaml --reduced --repeats 2",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML recipe of a Drifting")
    parser.add_argument("--reduced", action="store_true", help="one label per update, which a CPU can hold")
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], help="of the features (default: that of the recipe's training)"
    )
    parser.set_defaults(run=_run_drift_loss)


def _run_drift_loss(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from genflow.benchmarks.drift_loss import DriftLossOptions, benchmark_drift_loss, drift_loss_table

    options = DriftLossOptions(arguments.repeats, arguments.reduced, arguments.precision, arguments.device)
    report = _timed(options, partial(benchmark_drift_loss, arguments.recipe, options, arguments.cfg_options))
    return report, drift_loss_table(report)


def _machine(report: dict[str, Any]) -> str:
    hardware, versions = report["hardware"], report["versions"]
    name = hardware.get("gpu", f"{hardware['cpu']}, {hardware['threads']} threads, load {hardware['load']:.1f}")
    return f"{name}; " + ", ".join(f"{what} {version}" for what, version in versions.items())


if __name__ == "__main__":
    run_tool(main)
