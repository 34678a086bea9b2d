"""What the suite measures, in order of importance, at full size for a GPU and in small for a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from genflow.errors import UserError, nearest

Size = Literal["full", "small"]

_HERE = "genflow.benchmarks"


@dataclass(frozen=True)
class Entry:
    """Something to measure, in a process of its own.

    Args:
        name: in reports and on the command line.
        target: ``module:function``, called with a :class:`~genflow.benchmarks.work.Work` and the arguments.
        seconds: that it should take; with less time left it is not begun.
        arguments: of the function.
    """

    name: str
    target: str
    seconds: float
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """Seconds after which its process is ended; a first start from a cold disk is in it."""
        return 90 + 2 * self.seconds


def _update(recipe: str, seconds: float, compile: bool = False, processes: int = 8) -> Entry:
    name = f"{'compiled' if compile else 'update'}-{recipe}"
    arguments = {"recipes": [recipe], "processes": processes, "compile": compile}
    return Entry(name, f"{_HERE}.suite_updates:measure_updates", seconds, arguments)


def _part(name: str, what: str, seconds: float, **arguments: Any) -> Entry:
    return Entry(name, f"{_HERE}.suite_parts:measure_{what}", seconds, arguments)


def _run(name: str, what: str, seconds: float, **arguments: Any) -> Entry:
    return Entry(name, f"{_HERE}.suite_runs:measure_{what}", seconds, arguments)


_BIFLOW, _PMF, _ABLATION = "biflow_b2_imagenet", "pmf_b16_imagenet256", "drift_ablation_imagenet"
_SYSTEMS = [_PMF, _BIFLOW, "drift_b2_imagenet"]
_DIGITS = ["pmf_digits", "biflow_digits", "itarflow_digits", "drift_digits", "mae_digits"]
#: Both sides of the exact inverse, with decoding; each batch size takes graphs of its own.
_INVERSE = {"batches": [1, 4, 16, 64, 256], "repeats": 3, "precision": "bfloat16", "decoder": True}
#: The labels of a process of 8 of the ablation's 64.
_OF_EIGHT = ["model.labels_per_update=8"]
_STEP = {"recipe": _PMF, "batch": 16, "precision": "bfloat16", "repeats": 5}

FULL = (
    _part("hardware", "hardware", 20),
    _update(_PMF, 40),
    _update(_BIFLOW, 45),
    _update(_ABLATION, 40),
    _update(_PMF, 120, compile=True),
    _part("inverse-biflow_b2_imagenet", "inverse", 100, recipe=_BIFLOW, **_INVERSE),
    _part("inverse-biflow_xl2_imagenet", "inverse", 150, recipe="biflow_xl2_imagenet", **_INVERSE),
    _update("itarflow_b2_imagenet", 25),
    _update("drift_b2_imagenet", 75),
    _update("meanflow_b2_imagenet", 25),
    _update("imf_b2_imagenet", 25),
    _update("jit_b16_imagenet256", 25),
    _update("mae_latent_256", 30),
    _update("drift_b16_imagenet_pixels", 80, processes=64),
    _part("drift-loss", "drift_loss", 30, recipe=_ABLATION, overrides=_OF_EIGHT, repeats=3),
    _part("train-step", "train_step", 40, **_STEP),
    _part("muon-pmf_b16_imagenet256", "muon", 25, recipe=_PMF, overrides=["model.perceptual=null"]),
    _part("draws", "draws", 15, shape=[3, 256, 256], batch=128, cpu_batch=8),
    _run("sampling", "sampling", 60, recipes=_SYSTEMS, batches=[1, 64]),
    _run("gpu-tests", "gpu_tests", 90),
    _update(_BIFLOW, 120, compile=True),
    Entry("update-digits", f"{_HERE}.suite_updates:measure_updates", 60, {"recipes": _DIGITS}),
    _part("data", "data", 30, repeats=2, pictures=32, packed=512, latents=4096, batch=256),
    *(
        _run(f"sampling-compiled-{recipe}", "sampling", 120, recipes=[recipe], batches=[1, 64], compile=True)
        for recipe in _SYSTEMS
    ),
    _update(_ABLATION, 90, compile=True),
    _part("train-step-compiled", "train_step", 90, **_STEP, compile=True),
    *(
        _update(recipe, 80, compile=True)
        for recipe in (
            "jit_b16_imagenet256",
            "itarflow_b2_imagenet",
            "imf_b2_imagenet",
            "meanflow_b2_imagenet",
            "drift_b2_imagenet",
        )
    ),
    _part("muon-pmf_l16_imagenet256", "muon", 40, recipe="pmf_l16_imagenet256", overrides=["model.perceptual=null"]),
    _run("training-pmf_digits", "training", 150, recipe="pmf_digits"),
    _run("training-biflow_digits", "training", 150, recipe="biflow_digits"),
    _run("training-drift_digits", "training", 150, recipe="drift_digits"),
)

_SHORT = ["train_cfg.max_iters=10", "evaluation.per_class=5", "default_hooks.samples.per_class=1"]


def _short(*prerequisites: str) -> list[str]:
    """Ten updates of a recipe and its prerequisites, those named ``-name`` without an evaluation."""
    options = list(_SHORT)
    for name in prerequisites:
        kept = _SHORT[:1] if name.startswith("-") else _SHORT
        options += [f"prerequisites.{name.removeprefix('-')}.recipe.{option}" for option in kept]
    return options


SMALL = (
    _part("hardware", "hardware", 10),
    *(_update(recipe, 15, processes=1) for recipe in _DIGITS),
    _part("inverse-biflow_digits", "inverse", 15, recipe="biflow_digits", batches=[1, 4], repeats=2, decoder=True),
    _part("drift-loss", "drift_loss", 15, recipe="drift_digits", repeats=2),
    _part("train-step", "train_step", 15, recipe="pmf_digits", batch=6, repeats=2),
    _part("muon-pmf_digits", "muon", 15, recipe="pmf_digits"),
    _part("draws", "draws", 10, shape=[3, 64, 64], batch=8, cpu_batch=8),
    _run(
        "sampling",
        "sampling",
        25,
        recipes=["pmf_digits", "biflow_digits", "drift_digits"],
        batches=[1, 16],
        precision="float32",
    ),
    _run("gpu-tests", "gpu_tests", 30),
    _part("data", "data", 20, repeats=1, pictures=4, packed=64, latents=256, batch=32),
    _run("training-pmf_digits", "training", 30, recipe="pmf_digits", overrides=_short()),
    _run("training-biflow_digits", "training", 30, recipe="biflow_digits", overrides=_short("teacher")),
    _run("training-drift_digits", "training", 30, recipe="drift_digits", overrides=_short("-encoder")),
    _update("pmf_digits", 90, compile=True, processes=1),
)


def entries(size: Size, only: Sequence[str] | None = None) -> list[Entry]:
    """The entries of a size, or those of them that are named, in the suite's order.

    Raises:
        UserError: there is no such entry; names the nearest.
    """
    plan = {entry.name: entry for entry in (FULL if size == "full" else SMALL)}
    for name in only or ():
        if name not in plan:
            hint = nearest(name, plan)
            raise UserError(f"--only: found '{name}', expected entries of the {size} suite{hint or _listed(plan)}")
    return [entry for name, entry in plan.items() if only is None or name in only]


def _listed(names: Sequence[str]) -> str:
    return f": {', '.join(names)}"
