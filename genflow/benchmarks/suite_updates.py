"""Updates of recipes, one after the other: time, memory, multiply-adds, and what parts of them take."""

import contextlib
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch

from genflow.analysis.executed import ExecutedMacs
from genflow.benchmarks.timing import Clock, matrix_rate, repeated, spread, synchroniser
from genflow.benchmarks.updates import Updating, load_share
from genflow.benchmarks.work import Work
from genflow.draws import Draws
from genflow.engine.memory import out_of_memory
from genflow.errors import UserError, reason
from genflow.methods.drifting import Drifting

#: How often the rows of a process are halved where they do not fit, or an update takes too long.
_HALVINGS = 3
#: Seconds of an update above which its rows are halved, and seconds for the timed updates.
_SLOW, _TIMED = 20.0, 8.0


class _TooSlow(Exception):
    pass


def measure_updates(
    work: Work, recipes: Sequence[str], processes: int = 1, compile: bool = False, overrides: Sequence[str] = ()
) -> None:
    """Keep ``updates``, an entry for each recipe.

    An update is all that a training does in one, on one of several processes, but for the sum of gradients over them,
    hooks and reading data: copies to the device, a feed's rows, forward and backward passes of all micro-batches,
    optimizer and averages. The data are made up, and so are weights of prerequisites and of encoders whose files are
    not given.

    ``macs`` are the multiply-adds of one update as :class:`~genflow.analysis.executed.ExecutedMacs` sees them, frozen
    networks and optimizer included, what checkpointing computes again too; of an update that is not compiled, also
    where the timed ones are. ``share`` is their share of what matrix products of the recipe's precision do in the
    time; parts in float32 make it smaller. ``parts`` are shares of the time of updates in which each part is waited
    for: ``draws`` (random numbers), ``backward``, ``optimizer``, ``averages``, and of Drifting ``networks``, all passes
    of generator and encoders, the backward one included.

    Args:
        work: the entry.
        recipes: their names.
        processes: among which the recipe's batch is divided; more if a share does not fit or takes too long.
        compile: compile the layers (``train_cfg.compile``).
        overrides: of every recipe.

    Raises:
        UserError: an eighth of a share does not fit either.
    """
    found: list[dict[str, Any]] = []
    for name in recipes:
        options = [*overrides, f"train_cfg.compile={str(compile).lower()}"]
        found.append({"recipe": name, "compile": compile, **_fitting(work, name, options, processes)})
        work.keep(updates=found)


def _fitting(work: Work, name: str, overrides: Sequence[str], processes: int) -> dict[str, Any]:
    """The figures of as large a share of a recipe's batch as fits."""
    problem = ""
    for count in (processes * 2**halving for halving in range(_HALVINGS + 1)):
        try:
            figures = _timed(work, name, overrides, count, slowest=_SLOW if count < processes * 2**_HALVINGS else None)
        except (_TooSlow, RuntimeError, MemoryError) as error:
            if not (isinstance(error, _TooSlow) or out_of_memory(error)):
                raise
            problem = reason(error)
        except UserError as error:
            if problem:  # the share could not be halved once more
                raise UserError(f"{name}: {problem}; {error}") from None
            raise
        else:
            work.free()
            rate = matrix_rate(work.device, getattr(torch, figures["precision"]))
            share = figures["macs"] / rate / figures["seconds"]
            return {**figures, "matrix_rate": rate, "share": share, "halved": problem}
        work.free()
    raise UserError(f"{name}: {problem}")


def _timed(work: Work, name: str, overrides: Sequence[str], processes: int, slowest: float | None) -> dict[str, Any]:
    graph = load_share(work.recipe(name), overrides, processes)
    section, optim = graph.section("train_cfg"), graph.section("optim_wrapper")
    synchronise = synchroniser(work.device)
    training = Updating(graph, work.device)
    method = training.method

    eager = torch.compiler.set_stance("force_eager") if section.compile else contextlib.nullcontext()
    with eager, ExecutedMacs() as executed:
        training.update(training.read())
    first = latest = _seconds(training, synchronise)  # compiles
    for _ in range(3 if section.compile else 0):  # shapes that differ from update to update are compiled anew
        latest = _seconds(training, synchronise)
    if slowest is not None and latest > slowest:
        raise _TooSlow(f"an update took {latest:.0f} s")
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(work.device)
    budget = min(_TIMED, work.left / 4)
    times = repeated(training.update, budget, synchronise, lambda: (training.read(),), warmup=0, most=20)

    images = training.rows
    if isinstance(method, Drifting):
        images = method.labels_per_update * method.samples_per_label
    return {
        "processes": processes,
        "micro_batches": section.micro_batches,
        "checkpointing": section.checkpointing,
        "precision": optim.precision,
        "rows": method.labels_per_update if isinstance(method, Drifting) else training.rows,
        "images": images,
        **spread(times),
        "images_per_second": images / spread(times)["seconds"],
        "macs": executed.total,
        "uncounted": sorted(executed.uncounted),
        "peak": _peak(work.device),
        "first_seconds": first,
        "graphs": _graphs() if section.compile else None,
        "parts": _parts(training, synchronise),
    }


def _seconds(training: Updating, synchronise: Any) -> float:
    """Of one update."""
    batch = training.read()
    synchronise()
    start = time.perf_counter()
    training.update(batch)
    synchronise()
    return time.perf_counter() - start


def _parts(training: Updating, synchronise: Any) -> dict[str, float]:
    """The shares of the parts of two updates."""
    clock, method = Clock(synchronise), training.method
    watched: list[tuple[str, Any, str]] = [
        ("update", training, "update"),
        ("draws", Draws, "uniform"),
        ("draws", Draws, "normal"),
        ("backward", training.optimizer, "backward"),
        ("optimizer", training.optimizer, "step"),
        ("averages", training, "average"),
    ]
    if isinstance(method, Drifting):
        watched += [
            ("networks", method, "encode"),
            ("networks", method.generator, "evaluate"),
            ("networks", training.optimizer, "backward"),
        ]
    with contextlib.ExitStack() as stack:
        for part in watched:
            stack.enter_context(clock.watching(*part))
        for _ in range(2):
            training.update(training.read())
    whole = clock.seconds.pop("update")
    return {part: seconds / whole for part, seconds in clock.seconds.items()}


def _peak(device: torch.device) -> int:
    """Bytes: of the GPU's allocator in the timed updates; of a CPU the largest that the process has had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _graphs() -> int:
    """Graphs that torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
