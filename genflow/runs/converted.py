"""From somebody else's file of weights to a run folder, whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.analysis.description import count_recipe
from genflow.config.graph import ComponentGraph
from genflow.errors import UserError
from genflow.runs.folder import weights_file, write_metrics, write_recipe
from genflow.weights import write_weights


def check_free(out: Path) -> None:
    """See that ``out`` can become a run folder.

    Raises:
        UserError: something is there, other than an empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already; name another folder")


def read_archive(path: Path) -> dict[str, Tensor]:
    """Read a NumPy archive of floating-point arrays, as float32.

    Raises:
        UserError: it is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged file makes NumPy fail anywhere
        raise UserError(f"{path}: not a complete archive of plain arrays: {error}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise UserError(f"{path}: '{name}' is not an array of floating-point numbers")
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}


def write_run(
    out: Path, recipe: Mapping[str, Any], graph: ComponentGraph, weights: Mapping[str, Tensor], source: Path
) -> None:
    """Write the folder of a finished run.

    Args:
        out: the folder; not there, or empty.
        recipe: the resolved recipe.
        graph: the same, checked.
        weights: of its artifact, checked.
        source: the file that they come from, for metrics.json.
    """
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cost = asdict(count_recipe(graph))
    del cost["by_component"]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial"))
    try:
        partial.chmod(0o755)
        write_recipe(partial, recipe)
        write_weights(weights_file(partial), weights)
        origin = {"file": source.name, "sha256": digest}
        write_metrics(partial, {"converted_from": origin, "updates": None, "generator": cost})
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
