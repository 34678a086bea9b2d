"""Initial weights from another run: ``init_from``."""

from pathlib import Path

from genflow.errors import UserError
from genflow.methods.base import Method
from genflow.runs.folder import RunFolder
from genflow.weights import read_state, read_weights

_SHOWN = 8


def start_from(method: Method, path: str) -> list[str]:
    """Take the weights of a run, or of a file, for what the method trains, by name and shape.

    Args:
        method: with its own initial weights, which stay where nothing fits.
        path: a run folder, or a file of weights.

    Returns:
        Lines that say how many were taken and which were left out.

    Raises:
        UserError: the file is missing or damaged, or nothing in it fits.
    """
    source = Path(path)
    found = read_weights(RunFolder(source).weights_file()) if source.is_dir() else read_state(source)
    own = method.artifact_module.state_dict()
    taken = {name: value for name, value in found.items() if name in own and value.shape == own[name].shape}
    if not taken:
        raise UserError(f"{path} has no weights of the names and shapes of {type(method).__name__}'s")
    method.artifact_module.load_state_dict(taken, strict=False)
    lines = [f"init_from {path}: {len(taken)} of {len(own)} tensors taken"]
    left = [name for name in (*own, *(name for name in found if name not in own)) if name not in taken]
    for name in left[:_SHOWN]:
        there, here = (tuple(state[name].shape) if name in state else "missing" for state in (found, own))
        lines.append(f"  not taken: {name}: {there} there, {here} here")
    return lines + ([f"  and {len(left) - _SHOWN} more"] if len(left) > _SHOWN else [])
