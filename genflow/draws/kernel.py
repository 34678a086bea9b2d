"""Uniform numbers of :class:`~genflow.draws.draws.Draws` in one launch, by Triton; the same bits as with tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Counters of a program; each gives four numbers.
_COUNTERS = 256


@triton.jit(do_not_specialize=["count", "key0", "key1", "purpose"])
def _uniform(out, positions, count, key0, key1, purpose, counters: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * counters + tl.arange(0, counters)
    position = tl.load(positions + row)
    zero = tl.zeros([counters], tl.uint32)
    word0, word1, word2, word3 = tl.philox_impl(
        block.to(tl.uint32, bitcast=True),
        zero + (position & 0xFFFFFFFF).to(tl.uint32),
        zero + ((position >> 32) & 0xFFFFFFFF).to(tl.uint32),
        zero + purpose.to(tl.uint32, bitcast=True),
        key0.to(tl.uint32, bitcast=True),
        key1.to(tl.uint32, bitcast=True),
        10,
    )
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [4 * counters])
    numbers = ((words >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    element = tl.program_id(1) * (4 * counters) + tl.arange(0, 4 * counters)
    tl.store(out + row * count + element, numbers, mask=element < count)


def uniform(positions: Tensor, count: int, key: tuple[int, int], purpose: int) -> Tensor:
    """(B, count) float32 numbers in (0, 1).

    Args:
        positions: (B,) int64, on the device.
        count: numbers of each.
        key, purpose: 32-bit words.
    """
    out = torch.empty(len(positions), count, device=positions.device)
    if out.numel():
        key0, key1, purpose = ((word + 2**31) % 2**32 - 2**31 for word in (*key, purpose))  # of one type, int32
        grid = (len(positions), triton.cdiv(count, 4 * _COUNTERS))
        _uniform[grid](out, positions.contiguous(), count, key0, key1, purpose, counters=_COUNTERS)
    return out
