"""The rows of the next update, made and copied to the device while the present update runs."""

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from genflow.methods.base import Method


class Rows:
    """The rows of one update after the other: batches, or what the method's feed makes of them, on the device.

    On a GPU a thread reads the next batch, lets the feed gather its rows in pinned memory, and copies them on a stream
    of its own. A feed is then one update ahead, which its saved state tells.

    Args:
        batches: of the loader, endless.
        method: whose feed makes rows, if it has any.
        device: where the rows go.
        updates: how many rows will be asked for.
        ahead: whether to work one update ahead; None does on a GPU.
    """

    def __init__(
        self,
        batches: Iterator[Mapping[str, Any]],
        method: Method,
        device: torch.device,
        updates: int,
        ahead: bool | None = None,
    ):
        self.batches = batches
        self.method = method
        self.device = device
        self.left = updates
        ahead = device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "rows") if ahead else None
        self._stream = torch.cuda.Stream(device) if ahead and device.type == "cuda" else None
        self._next: Future | None = None

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> dict[str, Any]:
        """The rows of the next update, safe to use on the current stream.

        Raises:
            UserError: what the loader or the feed came upon.
        """
        if self._thread is None:
            return self._make()
        pending = self._next or self._thread.submit(self._make)
        rows = pending.result()
        self.left -= 1
        self._next = self._thread.submit(self._make) if self.left > 0 else None
        if self._stream is not None:
            present = torch.cuda.current_stream(self.device)
            present.wait_stream(self._stream)
            for tensor in _tensors(rows):
                tensor.record_stream(present)
        return rows

    def settle(self) -> None:
        """Wait for the thread, so that nobody changes what the feed keeps."""
        if self._next is not None:
            self._next.exception()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _make(self) -> dict[str, Any]:
        batch = next(self.batches)
        with torch.cuda.stream(self._stream):
            return rows_of(batch, self.method, self.device)


def rows_of(batch: Mapping[str, Any], method: Method, device: torch.device) -> dict[str, Any]:
    """A batch, or the rows that the method's feed makes of it, on ``device``."""
    if method.feed is not None:
        method.feed.push(batch)
        batch = method.feed.rows(batch)
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def micro_batches_of(rows: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """The rows of an update in so many parts of about the same size; fewer where there are fewer rows."""
    count = len(rows["labels"])
    edges = [count * part // parts for part in range(parts + 1)]
    return [
        {name: value[start:end] for name, value in rows.items()}
        for start, end in itertools.pairwise(edges)
        if start != end
    ]


def _tensors(rows: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors of rows on a GPU, those inside of draws among them."""
    for value in rows.values():
        for tensor in (value,) if isinstance(value, Tensor) else vars(value).values():
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                yield tensor
