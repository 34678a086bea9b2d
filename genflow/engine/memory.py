"""Out of memory: told from other errors, and told in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genflow.errors import UserError

#: What torch, CUDA, cuBLAS and cuDNN say where they raise a plain RuntimeError.
_MESSAGES = re.compile(
    "out of memory|not enough memory|can't allocate memory|Cannot allocate memory|ALLOC_FAILED", re.I
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a CPU or a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and _MESSAGES.search(str(error)) is not None


@contextmanager
def telling_what_saves_memory(batch_size: int, micro_batches: int) -> Iterator[None]:
    """Name the entries of a recipe that save memory when an update runs out of it.

    Args:
        batch_size, micro_batches: as they are, for the message.

    Raises:
        UserError: out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"out of memory in an update; lower train_dataloader.batch_size ({batch_size}) or raise "
            f"train_cfg.micro_batches ({micro_batches}): {lines[0][:200]}"
        ) from error
