"""What an entry of the suite is given, and where its figures go."""

import gc
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genflow.benchmarks.timing import facts
from genflow.weights import write_text

#: In the folder of an entry's process.
RESULT = "result.json"


class NothingToMeasure(Exception):
    """An entry cannot be measured here, which is no fault; the message says why."""


@dataclass
class Work:
    """An entry that is being measured, in a process of its own.

    Args:
        device: where to compute.
        recipes: folder of the recipes.
        folder: for files of the entry's own; it is removed when the process has ended.
        seconds: after which the process is ended.
    """

    device: torch.device
    recipes: Path
    folder: Path
    seconds: float
    _result: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.perf_counter() - self._began)

    def recipe(self, name: str) -> str:
        """The path of a recipe."""
        return str(self.recipes / f"{name}.yaml")

    def keep(self, **figures: Any) -> None:
        """Keep figures by their names, on disk at once: they outlive whatever happens to the process."""
        self._result.setdefault("figures", {}).update(figures)
        self.write()

    def write(self, **outcome: Any) -> None:
        """Write what there is, with the device and versions, and how it ended."""
        self._result |= {**facts(self.device), **outcome}
        write_text(self.folder / RESULT, json.dumps(finite(self._result), indent=2) + "\n")

    def free(self) -> None:
        """Give the device's memory back; nothing may refer to it any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def finite(value: Any) -> Any:
    """Plain data without what JSON lacks: None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
