"""Random numbers are Philox, uniform and normal, and depend on (seed, sample, stream, element) alone."""

import math
import os
import subprocess
import sys
import zlib

import pytest
import torch
from scipy import stats

from genflow.draws import Draws, philox


def at(*positions: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.tensor(positions))


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers_of_random123(counter, key, expected):
    found = philox([torch.tensor([word]) for word in words(counter)], tuple(words(key)))
    assert [int(word) for word in found] == words(expected)


def philox_in_plain_integers(counter: list[int], key: list[int]) -> list[int]:
    for _ in range(10):
        product0, product1 = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (product1 >> 32) ^ counter[1] ^ key[0],
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ counter[3] ^ key[1],
            product0 & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, -1])
@pytest.mark.parametrize("position", [0, 12345, 2**33 + 5])
def test_uniform_numbers_are_the_top_23_bits_of_the_counter_scheme(seed, position):
    found = at(position, seed=seed).uniform("noise", (6,))[0].tolist()
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    expected = []
    for block in range(2):
        counter = [block, position & 0xFFFFFFFF, position >> 32, zlib.crc32(b"noise")]
        expected += philox_in_plain_integers(counter, key)
    assert found == [((word >> 9) + 0.5) / 2**23 for word in expected[:6]]


@pytest.fixture(scope="module")
def many() -> Draws:
    return Draws(3, torch.arange(2000))


def test_uniform_is_uniform(many):
    numbers = many.uniform("u", (100,)).double()
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 200_000))
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=1e-3)
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 0.01


def test_normal_is_standard_normal(many):
    numbers = many.normal("n", (100,)).double()
    assert float(numbers.mean()) == pytest.approx(0, abs=4 / math.sqrt(200_000))
    assert float(numbers.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / 200_000))
    assert float((numbers**3).mean()) == pytest.approx(0, abs=4 * math.sqrt(15 / 200_000))
    assert float((numbers**4).mean()) == pytest.approx(3, abs=4 * math.sqrt(96 / 200_000))
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > 0.01


def test_elements_and_neighbouring_samples_are_uncorrelated(many):
    numbers = many.normal("n", (8,)).double()
    bound = 4.5 / math.sqrt(2000)
    elements = torch.corrcoef(numbers.T) - torch.eye(8)
    assert float(elements.abs().max()) < bound
    assert abs(float((numbers[1:] * numbers[:-1]).mean())) < bound


@pytest.mark.parametrize("method", ["uniform", "normal"])
def test_a_row_does_not_depend_on_its_batch(method):
    alone = getattr(at(5), method)("x", (3, 2))
    batch = getattr(at(3, 5, 9), method)("x", (3, 2))
    assert alone.shape == (1, 3, 2)
    assert torch.equal(alone[0], batch[1])
    assert not torch.equal(batch[0], batch[1])


def test_uniform_numbers_of_a_longer_draw_begin_with_those_of_a_shorter_one():
    assert torch.equal(at(1).uniform("x", (5,)), at(1).uniform("x", (11,))[:, :5])


def test_shapes_and_types():
    draws = at(0, 1, 2)
    for numbers in (draws.uniform("x"), draws.normal("x")):
        assert numbers.shape == (3,)
        assert numbers.dtype == torch.float32
    assert draws.normal("x", (3, 5, 7)).shape == (3, 3, 5, 7)


def test_streams_are_independent(many):
    one, two = many.normal("one", (10,)), many.normal("two", (10,))
    assert not (one == two).any()
    assert abs(float((one * two).mean())) < 4 / math.sqrt(20_000)


def test_seeds_differ_over_64_bits():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**63, -1, -2, -(2**32)]
    rows = torch.stack([at(0, seed=seed).uniform("x", (4,))[0] for seed in seeds])
    assert len(rows.unique(dim=0)) == len(seeds)
    assert torch.equal(at(0, seed=-1).uniform("x"), at(0, seed=2**64 - 1).uniform("x"))


def test_positions_beyond_32_bits_differ():
    rows = at(0, 2**32, 2**40).uniform("x", (4,))
    assert len(rows.unique(dim=0)) == 3


def test_slicing_and_length():
    draws = Draws(1, torch.arange(10, 20))
    part = draws[3:6]
    assert (len(draws), len(part)) == (10, 3)
    assert torch.equal(part.normal("x", (4,)), draws.normal("x", (4,))[3:6])
    assert torch.equal(draws.to("cpu").uniform("x"), draws.uniform("x"))


def test_draws_know_their_places_in_the_global_batch():
    whole = Draws(3, torch.arange(40, 48), batch_size=8)
    part = whole[2:5]
    assert part.batch_indices.tolist() == [2, 3, 4] and part.batch_size == 8
    assert part.global_batch().positions.tolist() == list(range(40, 48))
    assert part.global_batch().uniform("use")[part.batch_indices].equal(part.uniform("use"))
    chosen = whole[torch.tensor([6, 1])]
    assert chosen.batch_indices.tolist() == [6, 1] and chosen.global_batch().positions.equal(whole.positions)


def test_draws_without_a_global_batch_are_all_there_are():
    draws = Draws(3, torch.tensor([7, 100, 2]))
    assert draws.batch_indices.tolist() == [0, 1, 2] and draws.global_batch() is draws


INTERPRETED = """
import torch, zlib
from genflow.draws import Draws, kernel
for seed in (0, 12345678901234567, -3):
    draws = Draws(seed, torch.tensor([0, 1, 5, 2**31 + 7, 2**40 + 3]))
    for count in (1, 4, 7, 1024, 1025):
        found = kernel.uniform(draws.positions, count, draws._key, zlib.crc32(b"noise"))
        assert torch.equal(found, draws.uniform("noise", (count,))), (seed, count)
"""


def test_the_kernel_has_the_same_bits():
    """On the CPU, by Triton's interpreter."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", [0, 2**63 + 11])
def test_a_gpu_draws_the_same_numbers(seed):
    draws = Draws(seed, torch.tensor([0, 3, 2**40 + 1]))
    for count in (1, 5, 4099):
        assert torch.equal(draws.to("cuda").uniform("noise", (count,)).cpu(), draws.uniform("noise", (count,)))
    on_device = draws.to("cuda").normal("noise", (4099,)).cpu()
    torch.testing.assert_close(on_device, draws.normal("noise", (4099,)), atol=1e-5, rtol=1e-5)
