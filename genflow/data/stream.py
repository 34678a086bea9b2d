"""Training data as one endless stream of samples, the same for any number of processes and after a resume."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from genflow.data.base import Dataset
from genflow.draws import Draws
from genflow.errors import UserError


def epoch_permutation(length: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in an epoch: (length,) int64, a function of the arguments alone.

    As in :class:`~genflow.draws.Draws`, the low 64 bits of ``seed`` count.
    """
    # Hashed because torch's CPU generator uses 32 bits of its seed.
    digest = hashlib.sha256(f"{seed % 2**64} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    return torch.randperm(length, generator=generator)


class TrainingStream(torch.utils.data.Dataset):
    """A data set repeated forever, every epoch in an order of its own.

    Position n of the stream is sample ``epoch_permutation(len, seed, n // len)[n % len]``.

    Args:
        dataset: what to read.
        seed: seed of the orders and of the samples' random numbers.
        global_batch: samples per update over all processes, which their draws know.
        stored: how images are sent from the process that reads them; None as the data set gives them.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        global_batch: int | None = None,
        stored: Callable[[Tensor], Tensor] | None = None,
    ):
        self.dataset = dataset
        self.seed = seed
        self.global_batch = global_batch
        self.stored = stored
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def indices(self, positions: Tensor) -> Tensor:
        """(B,) positions of the stream to (B,) indices into the data set."""
        length = len(self.dataset)
        epochs = positions // length
        indices = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():  # a batch may straddle epochs
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, epoch_permutation(length, self.seed, epoch)
            rows = epochs == epoch
            indices[rows] = self._permutation[positions[rows] % length]
        return indices

    def __getitems__(self, positions: list[int]) -> "dict[str, Any] | UserError":
        """Read a batch, or say why it cannot be read.

        Args:
            positions: B positions of the stream, each >= 0.

        Returns:
            what :meth:`Dataset.batch` returns, and ``"draws"``: the :class:`Draws` of the positions.
        """
        numbers = torch.tensor(positions, dtype=torch.int64)
        draws = Draws(self.seed, numbers, self.global_batch)
        try:
            batch = self.dataset.batch(self.indices(numbers), draws)
        except UserError as error:  # torch would wrap it in the traceback of a loader process
            return error
        if self.stored is not None:
            batch["images"] = self.stored(batch["images"])
        return {**batch, "draws": draws}


class StreamBatchSampler(Sampler[list[int]]):
    """The positions of one process's batches, without end.

    Update s takes positions s * B to (s + 1) * B - 1 of the stream, of which every process has an equal,
    contiguous share in the order of the ranks.

    Args:
        start_step: first update, >= 0.
        global_batch: B, samples per update over all processes.
        rank: this process, in [0, world_size).
        world_size: number of processes.

    Raises:
        UserError: B is not positive or cannot be shared out equally.
    """

    def __init__(self, start_step: int, global_batch: int, rank: int, world_size: int):
        if global_batch < 1 or global_batch % world_size:
            raise UserError(
                f"train_dataloader.batch_size: found {global_batch}, expected a positive multiple of "
                f"the {world_size} processes"
            )
        self.start_step = start_step
        self.global_batch = global_batch
        self.rank = rank
        self.share = global_batch // world_size

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start_step * self.global_batch + self.rank * self.share
        while True:
            yield list(range(first, first + self.share))
            first += self.global_batch


class _Loader(DataLoader):
    """Raises the error that a process came upon while it read a batch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _as_read(batch: Any) -> Any:
    """The collation of batches that are read whole."""
    return batch


def build_loader(
    dataset: Dataset,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    stored: Callable[[Tensor], Tensor] | None = None,
) -> DataLoader:
    """The endless loader of one training process; its batches are those of :class:`TrainingStream`.

    Args:
        dataset: what to train on.
        global_batch: samples per update, over all processes.
        seed: seed of the stream.
        start_step: first update, for a resume.
        rank: this process.
        world_size: number of processes.
        num_workers: loader processes; their number does not change the batches.
        stored: see :class:`TrainingStream`.

    Raises:
        UserError: ``global_batch`` cannot be shared out equally.
    """
    return _Loader(
        TrainingStream(dataset, seed, global_batch, stored),
        batch_sampler=StreamBatchSampler(start_step, global_batch, rank, world_size),
        num_workers=num_workers,
        collate_fn=_as_read,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )
