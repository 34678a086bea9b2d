"""Time computations against each other in one process, and say on what they ran."""

import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

_PAGE_COUNTS = Path("/proc/self/statm")


@dataclass(frozen=True)
class Comparison:
    """How two computations compare; ratios above 1 say that ``a`` is the faster one.

    Args:
        a, b: median seconds.
        ratio: median of the ratios b / a of runs that followed each other.
        low, high: the smallest and the largest of these ratios.
    """

    a: float
    b: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Memory:
    """What a computation holds.

    Args:
        weights: bytes of its parameters and buffers.
        working: bytes on top of what lay there before, at the peak of one run. On a GPU as its allocator counts
            them; on a CPU the growth of the process's resident memory, looked at every millisecond, after the C
            library has given back what earlier runs left. None where that cannot be had: it takes Linux and glibc.
    """

    weights: int
    working: int | None


def interleaved(
    runs: Sequence[Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    synchronise: Callable[[], None] = lambda: None,
    advance: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Time computations in turn, A B C A B C ..., so that a drift of the machine's speed meets all alike.

    Args:
        runs: what to time.
        repeats: timed rounds.
        warmup: rounds before that are not timed.
        synchronise: waits for the device; called before every reading of the clock.
        advance: called after every run.

    Returns:
        Seconds, one list per run with one entry per timed round.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(warmup + repeats):
        for run, times in zip(runs, seconds, strict=True):
            synchronise()
            start = time.perf_counter()
            run()
            synchronise()
            if turn >= warmup:
                times.append(time.perf_counter() - start)
            advance()
    return seconds


def repeated(
    run: Callable[..., Any],
    seconds: float,
    synchronise: Callable[[], None] = lambda: None,
    prepare: Callable[[], tuple] = tuple,
    warmup: int = 1,
    least: int = 3,
    most: int = 20,
) -> list[float]:
    """Time a computation again and again, as long as there is time.

    Args:
        run: what to time.
        seconds: after which no more runs are begun, once there are ``least``.
        synchronise: as in :func:`interleaved`.
        prepare: makes the arguments of a run, which is not timed.
        warmup: runs before that are not timed, nor counted among ``seconds``.
        least, most: timed runs.

    Returns:
        Seconds of each.
    """
    times: list[float] = []
    for _ in range(warmup):
        run(*prepare())
    began = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - began < seconds):
        arguments = prepare()
        synchronise()
        start = time.perf_counter()
        run(*arguments)
        synchronise()
        times.append(time.perf_counter() - start)
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """``seconds``, the median of runs, with ``low``, ``high`` and the number of ``runs``."""
    return {"seconds": statistics.median(times), "low": min(times), "high": max(times), "runs": len(times)}


class Clock:
    """Seconds that parts of a computation take, the device waited for before and after each of their calls.

    Args:
        synchronise: waits for the device.

    Attributes:
        seconds: {part: seconds of all calls}; a call within another of the same part is in that one's.
    """

    def __init__(self, synchronise: Callable[[], None]):
        self._synchronise = synchronise
        self._running: set[str] = set()
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def watching(self, part: str, owner: Any, name: str) -> Iterator[None]:
        """Time the calls of a function of a module, class or object, as a part."""
        own, original = name in vars(owner), getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            if part in self._running:
                return original(*arguments, **options)
            self._running.add(part)
            self._synchronise()
            start = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self._synchronise()
                self.seconds[part] += time.perf_counter() - start
                self._running.discard(part)

        setattr(owner, name, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)


def compare(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Compare the seconds of runs that followed each other in pairs."""
    ratios = [slow / fast for fast, slow in zip(a, b, strict=True)]
    return Comparison(statistics.median(a), statistics.median(b), statistics.median(ratios), min(ratios), max(ratios))


def paired(a: Callable[[], Any], b: Callable[[], Any], repeats: int, **options: Any) -> Comparison:
    """Time two computations in turn, A B A B ...; options as in :func:`interleaved`."""
    return compare(*interleaved([a, b], repeats, **options))


def memory(run: Callable[[], Any], modules: Sequence[nn.Module], device: torch.device) -> Memory:
    """Run a computation once and measure the memory of it and of the modules at work."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return Memory(weights, _peak_on_gpu(run, device) if device.type == "cuda" else _peak_on_cpu(run))


def _peak_on_gpu(run: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Callable[[], Any]) -> int | None:
    if not _PAGE_COUNTS.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        run()
        return None
    gc.collect()  # what it frees during the run would hide what the run takes
    ctypes.CDLL(None).malloc_trim(0)
    finished = threading.Event()
    before = peak = _resident()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(1e-3):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        finished.set()
        watcher.join()
    return peak - before


def _resident() -> int:
    return int(_PAGE_COUNTS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits for the device; nothing to do on a CPU."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds per second of a square matrix product, the rate to compare with.

    The median of five products of side 8192, or of the first power of two whose product takes 50 ms.
    """
    side, seconds = 128, 0.0
    while seconds < 0.05 and side < 8192:
        side *= 2
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = statistics.median(
            interleaved([partial(torch.mm, left, right)], 5, synchronise=synchroniser(device))[0]
        )
    return side**3 / seconds


def facts(device: torch.device) -> dict[str, dict[str, Any]]:
    """``hardware`` and ``versions``, as every benchmark reports them; memory in bytes, load over a minute."""
    hardware: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "genflow": version("genflow")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware |= {"gpu": properties.name, "gpu_memory": properties.total_memory}
        versions |= {"cuda": torch.version.cuda}
    return {"hardware": hardware, "versions": versions}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(benchmark: str, comparison: Comparison, facts: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What every benchmark writes as JSON: ``benchmark, a, b, ratio, low, high, hardware, versions`` and more."""
    return {"benchmark": benchmark, **asdict(comparison), **facts, **more}
