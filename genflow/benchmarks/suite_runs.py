"""Entries of the suite that use the package as its users do: sampling, the tests that need a GPU, whole trainings."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from genflow.analysis.executed import ExecutedMacs
from genflow.benchmarks.timing import matrix_rate, repeated, spread, synchroniser
from genflow.benchmarks.updates import made_up_method
from genflow.benchmarks.work import NothingToMeasure, Work
from genflow.config.graph import ComponentGraph
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.generators.base import Generator
from genflow.inference.accelerate import accelerate
from genflow.runs.folder import RunFolder

#: Seconds for the timed runs of one computation.
_TIMED = 3.0


def measure_sampling(
    work: Work,
    recipes: Sequence[str],
    batches: Sequence[int],
    precision: str = "bfloat16",
    compile: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Keep ``sampling``, an entry for each recipe and batch size, at the recipe's own guidance, weights at random.

    ``seconds`` are those of a batch from its noise to samples in the codec's space, ``decoding`` of decoding it;
    ``share`` is that of the multiply-adds before decoding in what square products of this precision do in the time.

    Args:
        work: the entry.
        recipes: their names.
        batches: images at once.
        precision: of weights and products, those of the codec too.
        compile: as ``tools/sample.py --compile``.
        overrides: of every recipe.
    """
    found: list[dict[str, Any]] = []
    rate = matrix_rate(work.device, getattr(torch, precision))
    for recipe in recipes:
        graph = ComponentGraph.load(work.recipe(recipe), overrides)
        method = made_up_method(graph, work.device, for_training=False).eval()
        generator = accelerate(method.generator, precision, decode_precision=precision)
        macs = _macs_of_one(generator)
        if compile:
            generator.accelerate(compile=True)
        for batch in batches:
            figures = _of_batch(generator, batch, synchroniser(work.device))
            share = batch * macs / rate / figures["seconds"]
            found.append({"recipe": recipe, "precision": precision, "compile": compile, **figures})
            found[-1] |= {"nfe": generator.nfe, "macs": macs, "matrix_rate": rate, "share": share}
            work.keep(sampling=found)
        del method, generator
        work.free()


def _of_batch(generator: Generator, batch: int, synchronise: Callable[[], None]) -> dict[str, Any]:
    labels = torch.arange(batch, device=generator.device) % max(1, generator.num_classes)
    sample = partial(generator.sample, labels, 0, decode=False)
    start = time.perf_counter()
    samples = sample()  # compiles
    synchronise()
    first = time.perf_counter() - start
    sampling = spread(repeated(sample, _TIMED, synchronise, warmup=2, most=50))
    decoding = spread(repeated(partial(_decode, generator, samples), _TIMED, synchronise))["seconds"]
    return {
        "batch": batch,
        **sampling,
        "images_per_second": batch / sampling["seconds"],
        "first_seconds": first,
        "decoding": decoding,
        "decoded_per_second": batch / (sampling["seconds"] + decoding),
    }


@torch.no_grad()
def _decode(generator: Generator, samples: torch.Tensor) -> torch.Tensor:
    return generator.codec.decode(samples)


def _macs_of_one(generator: Generator) -> int:
    """Multiply-adds of an image, without decoding."""
    with ExecutedMacs() as executed:
        generator.sample(torch.zeros(1, dtype=torch.int64, device=generator.device), 0, decode=False)
    return executed.total


def measure_gpu_tests(work: Work) -> None:
    """Keep ``gpu_tests``: how many of the tests that need a GPU passed, failed and were skipped, and which failed.

    Raises:
        NothingToMeasure: there is no GPU, no pytest, or no tests.
        UserError: a test failed, or none ran.
    """
    tests = work.recipes.parent / "tests"
    if work.device.type != "cuda":
        raise NothingToMeasure("there is no GPU")
    if find_spec("pytest") is None:
        raise NothingToMeasure("pytest is not installed")
    files = [path for path in sorted(tests.rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    if not files:
        raise NothingToMeasure(f"there are no tests in {tests}")
    report = work.folder / "tests.xml"
    # Without the options of pyproject.toml, which ask for several processes.
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "gpu", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    done = subprocess.run(command, cwd=tests.parent, check=False)
    if not report.is_file():
        raise UserError(f"pytest ended with code {done.returncode} and wrote no report")
    figures = read_report(report)
    work.keep(gpu_tests=figures)
    if figures["failed"]:
        raise UserError(f"failed: {', '.join(figures['failed'])}")
    if not figures["passed"]:
        raise UserError("no test ran")


def read_report(file: Path) -> dict[str, Any]:
    """``passed`` and ``skipped``, numbers, and the names that ``failed``, of a report in JUnit's format."""
    figures: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": []}
    for case in ElementTree.parse(file).iter("testcase"):
        outcomes = {part.tag for part in case}
        if outcomes & {"failure", "error"}:
            figures["failed"].append(f"{case.get('classname')}.{case.get('name')}")
        else:
            figures["skipped" if "skipped" in outcomes else "passed"] += 1
    return figures


def measure_training(work: Work, recipe: str, overrides: Sequence[str] = ()) -> None:
    """Keep ``training``: the seconds of a whole training, its prerequisites, weights and evaluation included, and
    what its ``metrics.json`` says, that of its prerequisites beside it."""
    start = time.perf_counter()
    folder = train(work.recipe(recipe), list(overrides), options=TrainOptions(work.folder / "runs" / recipe))
    seconds = time.perf_counter() - start
    runs = {run.name: RunFolder(run).metrics for run in sorted(folder.parent.iterdir()) if run.is_dir()}
    for metrics in runs.values():
        metrics.pop("class_names", None)
    work.keep(training={"recipe": recipe, "seconds": seconds, "runs": json.loads(json.dumps(runs))})
