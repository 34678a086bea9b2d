"""From somebody else's file of weights to a run folder, whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from genflow.analysis.description import cost_or_reason, figures
from genflow.config.graph import ComponentGraph
from genflow.errors import UserError
from genflow.runs.folder import RunFolder
from genflow.weights import write_weights


def check_free(out: Path) -> None:
    """See that ``out`` can become a run folder.

    Raises:
        UserError: something is there, other than an empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already; name another folder")


def write_run(out: Path, graph: ComponentGraph, weights: Mapping[str, Tensor], source: Path, entry: str = "") -> None:
    """Write the folder of a finished run.

    Args:
        out: the folder; not there, or empty.
        graph: its checked recipe.
        weights: of its artifact, checked.
        source: the file that they come from, for metrics.json.
        entry: which weights of the file, where it has several.
    """
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cost = figures(cost_or_reason(graph))
    with whole_or_not(out) as partial:
        run = RunFolder(partial)
        run.write_recipe(graph)
        write_weights(run.weights_file(), weights)
        origin = {"file": source.name, "sha256": digest} | ({"entry": entry} if entry else {})
        run.write_metrics({"converted_from": origin, "updates": None, "generator": cost})
        run.metrics_lock.unlink(missing_ok=True)  # nobody else knows this folder yet


@contextmanager
def whole_or_not(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to be filled, which becomes ``out`` if nothing fails, and otherwise goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial"))
    try:
        partial.chmod(0o755)
        yield partial
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
