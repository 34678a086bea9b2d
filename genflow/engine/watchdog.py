"""Says which process an update waits for, when it waits for long."""

import math
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from mmengine.dist import get_dist_info

#: What a process does in an update, in this order; the one that is furthest behind is what the others wait for.
PHASES = ("waiting for data", "computing losses", "computing gradients", "updating")
WAITING, FORWARD, BACKWARD, UPDATING = range(4)


class Watchdog:
    """Every process notes its update and phase; the first one compares them and speaks once per stall.

    Args:
        seconds: how long an update may take before a line is printed.
    """

    _runs = 0

    def __init__(self, seconds: float):
        self.seconds = seconds
        Watchdog._runs += 1  # runs that follow each other have keys of their own in the group's store
        self.key = f"genflow/progress/{Watchdog._runs}"
        self.rank, self.size = get_dist_info()
        self._progress = (0, 0)
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def note(self, step: int, phase: int) -> None:
        """Say that this process is in phase number ``phase`` of update ``step`` (counted from 0)."""
        self._progress = (step, phase)
        self._since = time.monotonic()

    def pause(self) -> None:
        """Say that the update has ended; what is before the next :meth:`note` (samples, checkpoints) may take long."""
        self._since = math.inf

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        store = dist.distributed_c10d._get_default_store() if self.size > 1 else None
        spoken = None
        while not self._ended.wait(min(self.seconds / 4, 10.0)):
            progress = self._progress
            if store is not None:
                store.set(f"{self.key}/{self.rank}", f"{progress[0]} {progress[1]}")
            if self.rank == 0 and time.monotonic() - self._since > self.seconds and spoken != progress:
                spoken = progress
                step, phase, rank = min(self._all(store))
                print(
                    f"update {step + 1} has not ended after {self.seconds:g} s: "
                    f"process {rank} of {self.size} is {PHASES[phase]}",
                    file=sys.stderr,
                    flush=True,
                )

    def _all(self, store: "dist.Store | None") -> list[tuple[int, int, int]]:
        """Update, phase and rank of every process; one that has not noted anything is at the start."""
        found = [(*self._progress, self.rank)]
        for rank in range(1, self.size):
            key = f"{self.key}/{rank}"
            try:
                store.wait([key], timedelta(seconds=1))
                step, phase = map(int, store.get(key).split())
            except (RuntimeError, ValueError):
                step, phase = 0, 0
            found.append((step, phase, rank))
        return found
