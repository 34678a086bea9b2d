"""Entries of the suite that measure one thing: matrix products, Muon, random numbers, and the other benchmarks."""

import os
import platform
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from genflow.analysis.executed import ExecutedMacs
from genflow.benchmarks.data import DataOptions, benchmark_data
from genflow.benchmarks.drift_loss import DriftLossOptions, benchmark_drift_loss
from genflow.benchmarks.inverse import InverseOptions, benchmark_inverse
from genflow.benchmarks.timing import interleaved, matrix_rate, repeated, spread, synchroniser
from genflow.benchmarks.train_step import TrainStepOptions, benchmark_train_step
from genflow.benchmarks.updates import load_share, made_up_method
from genflow.benchmarks.work import NothingToMeasure, Work
from genflow.draws import Draws
from genflow.engine.optimizer import build_optimizer

#: Seconds for the timed updates of an optimizer.
_TIMED = 3.0


def measure_hardware(work: Work) -> None:
    """Keep ``matrix_rates``: multiply-adds per second of a square product by type; TF32 on a GPU only."""
    rates: dict[str, float] = {}
    for name in ("float32", "bfloat16"):
        rates[name] = matrix_rate(work.device, getattr(torch, name))
        work.keep(matrix_rates=rates)
    if work.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        rates["tf32"] = matrix_rate(work.device, torch.float32)
        torch.set_float32_matmul_precision("highest")
        properties = torch.cuda.get_device_properties(work.device)
        work.keep(
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            cudnn=torch.backends.cudnn.version(),
        )
    work.keep(matrix_rates=rates, system=platform.platform(), triton=_version("triton"), cores=os.cpu_count())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def measure_inverse(work: Work, recipe: str, overrides: Sequence[str] = (), **options: Any) -> None:
    """Keep ``inverse``: batch by batch what :func:`~genflow.benchmarks.inverse.benchmark_inverse` finds."""
    found: list[dict[str, Any]] = []
    about = {"recipe": recipe, "precision": options.get("precision", "float32")}

    def keep(entry: dict[str, Any]) -> None:
        found.append(entry)
        work.keep(inverse={**about, "batches": found})

    benchmark_inverse(work.recipe(recipe), InverseOptions(device=str(work.device), **options), overrides, found=keep)


def measure_drift_loss(work: Work, recipe: str, overrides: Sequence[str] = (), **options: Any) -> None:
    """Keep ``drift_loss``, the record of :func:`~genflow.benchmarks.drift_loss.benchmark_drift_loss`."""
    made = DriftLossOptions(device=str(work.device), **options)
    work.keep(drift_loss={**benchmark_drift_loss(work.recipe(recipe), made, overrides), "recipe": recipe})


def measure_train_step(work: Work, recipe: str, overrides: Sequence[str] = (), **options: Any) -> None:
    """Keep ``train_step``, the record of :func:`~genflow.benchmarks.train_step.benchmark_train_step`."""
    made = TrainStepOptions(device=str(work.device), **options)
    work.keep(train_step={**benchmark_train_step(work.recipe(recipe), made, overrides), "recipe": recipe})


def measure_data(work: Work, **options: Any) -> None:
    """Keep ``data``, the record of :func:`~genflow.benchmarks.data.benchmark_data`, which is of the CPU alone."""
    try:
        report = benchmark_data(DataOptions(**options))
    except ImportError as error:
        raise NothingToMeasure(f"a package is missing: {error}") from error
    work.keep(data=report)


def measure_muon(work: Work, recipe: str, overrides: Sequence[str] = ()) -> None:
    """Keep ``muon``, an entry for each precision of its products: seconds of an update with random gradients.

    ``share`` is that of the update's multiply-adds, counted as they run, in what square products of the same precision
    do in the time.
    """
    found: list[dict[str, Any]] = []
    synchronise = synchroniser(work.device)
    method = None
    for precision in ("float32", "bfloat16"):
        options = [*overrides, f"optim_wrapper.optimizer.newton_schulz_precision={precision}"]
        graph = load_share(work.recipe(recipe), options)
        if method is None:
            method = made_up_method(graph, work.device)
            for parameter in method.trained_parameters().values():
                parameter.grad = torch.randn_like(parameter)
        optimizer = build_optimizer(graph.section("optim_wrapper"), method)
        for group in optimizer.param_groups:
            group["lr"] = 1e-9
        with ExecutedMacs() as executed:
            optimizer.step()
        timed = spread(repeated(optimizer.step, _TIMED, synchronise))
        rate = matrix_rate(work.device, getattr(torch, precision))
        share = executed.total / rate / timed["seconds"]
        parameters = sum(parameter.numel() for parameter in method.trained_parameters().values())
        found.append({"recipe": recipe, "precision": precision, "parameters": parameters, **timed})
        found[-1] |= {"macs": executed.total, "matrix_rate": rate, "share": share}
        work.keep(muon=found)
        del optimizer
        work.free()


def measure_draws(work: Work, shape: Sequence[int], batch: int, cpu_batch: int) -> None:
    """Keep ``draws``, an entry for each device and law: seconds of ours and of torch's, whose numbers are others.

    Args:
        work: the entry.
        shape: of a sample's numbers.
        batch: samples, on the device.
        cpu_batch: samples, on the CPU.
    """
    found: list[dict[str, Any]] = []
    devices = {work.device: batch} | {torch.device("cpu"): cpu_batch}
    for device, samples in devices.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            draws = Draws(0, torch.arange(samples, device=device))
            for law, other in (("normal", torch.randn), ("uniform", torch.rand)):
                ways = [partial(getattr(draws, law), "suite", shape), partial(other, samples, *shape, device=device)]
                ours, theirs = interleaved(ways, 5, 2, synchroniser(device))
                numbers = samples * torch.Size(shape).numel()
                found.append({"device": device.type, "law": law, "numbers": numbers, "ours": spread(ours)})
                found[-1] |= {"torch": spread(theirs), "ratio": spread(ours)["seconds"] / spread(theirs)["seconds"]}
                # Without the kernel, of which Draws then warns, they are drawn in many small steps.
                found[-1]["warnings"] = sorted({str(entry.message)[:300] for entry in said})
                work.keep(draws=found)
