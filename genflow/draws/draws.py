"""Random numbers without hidden state: a draw is a function of (seed, sample, stream, element).

Every training sample has a position in one endless stream of samples (update times global batch plus
index in the batch), every generated image an index. Its random numbers depend on that number alone, so
neither the number of processes, nor micro-batches, nor a resume, nor the sampling batch changes them.
The bits come from Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
computed with integer tensor operations, or by one kernel of Triton on a GPU, hence the same on every device.
"""

import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from genflow.errors import reason

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
#: Counters that a CPU computes at a time, so that the steps of Philox find their numbers in its cache.
_AT_ONCE = 2**16


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox 4x32-10: four 32-bit counter words and two key words to four random 32-bit words.

    Words are held in int64 tensors, of shapes that broadcast; they take their common shape as late as they can, which
    saves most of the first rounds. A product of two words wraps around in int64, but its two halves, masked, are still
    right; the low half is masked together with what it is combined with.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((product1 >> 32) ^ (c1 ^ k0)) & _WORD, ((product0 >> 32) ^ (c3 ^ k1)) & _WORD
        c1, c3 = product1, product0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return list(torch.broadcast_tensors(c0, c1 & _WORD, c2, c3 & _WORD))


@cache
def _has_kernel(device_type: str) -> bool:
    """Whether :mod:`genflow.draws.kernel` serves a kind of device.

    Triton comes with torch for CUDA; to start its kernels it compiles C.
    """
    if device_type != "cuda" or find_spec("triton") is None:
        return False
    from genflow.draws import kernel

    try:
        kernel.uniform(torch.zeros(1, dtype=torch.int64, device=device_type), 1, (0, 0), 0)
    except Exception as error:
        warnings.warn(f"random numbers are drawn in many small steps, for Triton fails: {reason(error)}", stacklevel=2)
        return False
    return True


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of samples.

    Args:
        seed: any integer; its low 64 bits are used.
        positions: (B,) int64, the sample numbers.
        batch_size: samples per update over all processes, for laws that count samples; the positions then belong
            to one update. None: these samples are all there are.
        host: the positions once more, on the CPU, where they lie elsewhere; see :meth:`on_host`.
    """

    seed: int
    positions: Tensor
    batch_size: int | None = None
    host: Tensor | None = field(default=None, kw_only=True)

    @property
    def batch_indices(self) -> Tensor:
        """(B,) int64, the index of each sample in the global batch."""
        if self.batch_size is None:
            return torch.arange(len(self), device=self.positions.device)
        return self.positions % self.batch_size

    def global_batch(self) -> "Draws":
        """The draws of the global batch that these samples are a part of, in its order."""
        if self.batch_size is None:
            return self
        first = self.positions[:1] - self.batch_indices[:1]
        return replace(self, positions=first + torch.arange(self.batch_size, device=first.device), host=None)

    def _words(self, purpose: int, count: int) -> Tensor:
        """(B, count) int64 words in [0, 2**32)."""
        blocks = torch.arange(math.ceil(count / 4), device=self.positions.device)
        stream = torch.full_like(blocks, purpose)
        key = self._key
        words = self.positions.new_empty(len(self), len(blocks), 4)
        rows = max(1, _AT_ONCE // max(1, len(blocks)) if words.device.type == "cpu" else len(self))
        for part, position in zip(words.split(rows), self.positions.unsqueeze(1).split(rows), strict=True):
            counter = (blocks, position & _WORD, (position >> 32) & _WORD, stream)
            torch.stack(philox(counter, key), dim=-1, out=part)
        return words.flatten(1)[:, :count]

    def uniform(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 uniform numbers in (0, 1), 23 bits each; ``stream`` names their use."""
        purpose, count = zlib.crc32(stream.encode()), math.prod(shape)
        if _has_kernel(self.positions.device.type):
            from genflow.draws import kernel

            return kernel.uniform(self.positions, count, self._key, purpose).view(-1, *shape)
        return (((self._words(purpose, count) >> 9).float() + 0.5) * 2.0**-23).view(-1, *shape)

    @property
    def _key(self) -> tuple[int, int]:
        return self.seed & _WORD, (self.seed >> 32) & _WORD

    def normal(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 standard normal numbers (Box-Muller)."""
        count = math.prod(shape)
        half = math.ceil(count / 2)
        uniform = self.uniform(stream, (2, half))
        radius = torch.sqrt(-2.0 * torch.log(uniform[:, 0]))
        angle = (2.0 * math.pi) * uniform[:, 1]
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return both[:, :count].reshape(-1, *shape)

    def integers(self, stream: str, high: int, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) int64 uniform numbers in [0, high), high at most 2^23."""
        return (self.uniform(stream, shape) * high).long()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Draws":
        """The same draws, computed on ``device``; arguments as those of :meth:`torch.Tensor.to`."""
        moved = self.positions.to(device, non_blocking=non_blocking)
        return replace(self, positions=moved, host=None if moved.device.type == "cpu" else self.on_host().positions)

    def on_host(self) -> "Draws":
        """The same draws, computed on the CPU: few numbers that say what the device has to do are wanted there.

        Nothing waits for the device if the draws came from the CPU.
        """
        if self.host is None:
            return self if self.positions.device.type == "cpu" else replace(self, positions=self.positions.cpu())
        return replace(self, positions=self.host, host=None)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice | Tensor) -> "Draws":
        if self.host is None:
            return replace(self, positions=self.positions[part])
        on_device = part.to(self.positions.device, non_blocking=True) if isinstance(part, Tensor) else part
        host = self.host[part] if isinstance(part, slice) or part.device.type == "cpu" else None
        return replace(self, positions=self.positions[on_device], host=host)
