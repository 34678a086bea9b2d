"""Arrays of a NumPy archive, as somebody else wrote it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genflow.errors import UserError


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
