"""The newest real samples: a ring buffer for every class and one for all (docs/drifting.md, D14)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genflow.draws import Draws
from genflow.ranges import NotNegative, Positive

Storage = Literal["float32", "float16", "uint8"]


@dataclass(frozen=True)
class QueueSection:
    """The queue of one process.

    Args:
        per_class: newest samples of each class that are kept.
        overall: newest samples of any class that are kept.
        storage: how they are kept; ``uint8`` for pixels, which lie in [-1, 1].
        resume: ``save`` writes the queue beside every checkpoint, so that a resumed run goes on exactly; ``refill``
            reads the samples of past updates again.
        refill_updates: how many past updates ``refill`` reads.
    """

    per_class: Positive = 128
    overall: Positive = 1000
    storage: Storage = "float32"
    resume: Literal["save", "refill"] = "save"
    refill_updates: NotNegative = 3000


def widened(samples: Tensor) -> Tensor:
    """Samples as a queue stores them, of any shape and device, to float32; 8-bit ones are pixels in [-1, 1]."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples.float()


def stored(samples: Tensor, storage: Storage) -> Tensor:
    """Samples as a queue stores them; those that are so already stay as they are."""
    dtype = getattr(torch, storage)
    if dtype == torch.uint8 != samples.dtype:
        samples = ((samples + 1) * 127.5).round_().clamp_(0, 255)
    return samples.to(dtype)


class RingBuffers:
    """Buffers of equal size that overwrite their oldest entries; in pinned memory where there is a GPU.

    Memory is taken when the first samples arrive.

    Args:
        count: number of buffers.
        size: entries of each.
        storage: how entries are kept; 16-bit floats and 8-bit integers round.
    """

    def __init__(self, count: int, size: int, storage: Storage = "float32"):
        self.size = size
        self.storage = storage
        #: (count, size, *shape) entries.
        self.entries: Tensor | None = None
        #: (count,) the slot of the next entry, and the number of filled slots.
        self.next_slot = torch.zeros(count, dtype=torch.int64)
        self.filled = torch.zeros(count, dtype=torch.int64)

    def push(self, samples: Tensor, buffers: Tensor) -> None:
        """Append (B, *shape) samples to the buffers that (B,) ``buffers`` names, in order."""
        if self.entries is None:
            shape = (len(self.filled), self.size, *samples.shape[1:])
            pinned = torch.cuda.is_available()
            self.entries = torch.zeros(shape, dtype=getattr(torch, self.storage), pin_memory=pinned)
        order = torch.argsort(buffers, stable=True)
        buffers = buffers[order]
        pushed = torch.bincount(buffers, minlength=len(self.filled))
        rank = torch.arange(len(buffers)) - (pushed.cumsum(0) - pushed)[buffers]
        newest = rank >= pushed[buffers] - self.size  # the others would be overwritten at once
        slots = (self.next_slot[buffers] + rank) % self.size
        self.entries[buffers[newest], slots[newest]] = stored(samples[order[newest]], self.storage)
        self.next_slot = (self.next_slot + pushed) % self.size
        self.filled = (self.filled + pushed).clamp(max=self.size)

    def choose(self, buffers: Tensor, count: int, uniform: Tensor) -> Tensor:
        """Choose slots without replacement, or with replacement from a buffer that holds fewer.

        Args:
            buffers: (L,).
            count: slots per buffer.
            uniform: (L, max(size, count)) numbers in (0, 1).

        Returns:
            (L, count) int64.

        Raises:
            ValueError: a buffer is empty; names it.
        """
        filled = self.filled[buffers].unsqueeze(1)
        if not filled.all():
            raise ValueError(f"the queue of class {buffers[(filled == 0).flatten()][0].item()} is empty")
        vacant = torch.arange(uniform.shape[1]) >= filled
        without = uniform.masked_fill(vacant, 2.0).argsort(dim=1)[:, :count]
        repeated = (uniform[:, :count] * filled).long()
        return torch.where(filled < count, repeated, without)

    def read(self, buffers: Tensor, slots: Tensor) -> Tensor:
        """(L,) buffers and (L, n) slots to (L, n, *shape) samples as they are stored; :func:`widened` reads them.

        Where there is a GPU they are gathered into pinned memory, from which they are copied without waiting.
        """
        shape = (*slots.shape, *self.entries.shape[2:])
        gathered = torch.empty(shape, dtype=self.entries.dtype, pin_memory=torch.cuda.is_available())
        flat = (buffers.unsqueeze(1) * self.size + slots).flatten()
        torch.index_select(self.entries.flatten(0, 1), 0, flat, out=gathered.view(-1, *shape[2:]))
        return gathered

    def state(self) -> dict[str, Tensor]:
        """Entries and counters, by name."""
        return {"entries": self.entries, "next_slot": self.next_slot, "filled": self.filled}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            ValueError: it is of buffers of other sizes or storage.
        """
        expected = (len(self.filled), self.size, getattr(torch, self.storage))
        entries = state["entries"]
        found = (*entries.shape[:2], entries.dtype)
        if found != expected or any(len(state[name]) != expected[0] for name in ("next_slot", "filled")):
            raise ValueError(f"its queue has {found[0]} buffers of {found[1]} entries in {found[2]}, not {expected}")
        self.entries = entries.pin_memory() if torch.cuda.is_available() else entries
        self.next_slot, self.filled = state["next_slot"], state["filled"]


class SampleQueue:
    """What a process keeps of the samples that it has seen.

    Args:
        num_classes: classes; 0 puts all samples in one.
        section: sizes and storage.
    """

    def __init__(self, num_classes: int, section: QueueSection):
        self.num_classes = num_classes
        self.buffers = {
            "class": RingBuffers(max(1, num_classes), section.per_class, section.storage),
            "overall": RingBuffers(1, section.overall, section.storage),
        }

    def push(self, samples: Tensor, labels: Tensor) -> None:
        """Append (B, C, H, W) samples with (B,) labels, on the CPU."""
        self.buffers["class"].push(samples, self._classes(labels))
        self.buffers["overall"].push(samples, torch.zeros_like(labels))

    def of_class(self, labels: Tensor, count: int, draws: Draws) -> Tensor:
        """(L, count, C, H, W) random samples of (L,) classes, as they are stored, different ones as far as there are.

        Raises:
            ValueError: nothing has been pushed for a class.
        """
        return self._draw("class", self._classes(labels), count, draws)

    def overall(self, count: int, draws: Draws) -> Tensor:
        """(L, count, C, H, W) samples of any class for each of L draws; otherwise as :meth:`of_class`."""
        return self._draw("overall", torch.zeros(len(draws), dtype=torch.int64), count, draws)

    def _classes(self, labels: Tensor) -> Tensor:
        return labels if self.num_classes else torch.zeros_like(labels)

    def _draw(self, name: str, buffers: Tensor, count: int, draws: Draws) -> Tensor:
        ring = self.buffers[name]
        uniform = draws.uniform(f"queue {name}", (max(ring.size, count),))
        return ring.read(buffers, ring.choose(buffers, count, uniform))

    def state(self) -> dict[str, Tensor]:
        """Tensors by name; empty before the first push."""
        if self.buffers["class"].entries is None:
            return {}
        return {f"{name}.{key}": value for name, ring in self.buffers.items() for key, value in ring.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            ValueError: it is of another queue.
            KeyError: it is something else.
        """
        for name, ring in self.buffers.items():
            ring.load_state({key: state[f"{name}.{key}"] for key in ("entries", "next_slot", "filled")})
