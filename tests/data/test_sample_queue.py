"""Ring buffers of the newest samples: against the published code's numbers, storage, draws, state."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.data.sample_queue import QueueSection, RingBuffers, SampleQueue, widened
from genflow.draws import Draws

GOLDEN = Path(__file__).parents[1] / "golden" / "drifting" / "memory_bank.npz"


@pytest.fixture
def golden():
    """The file's arrays, its settings, and our buffers after its insertions."""
    with np.load(GOLDEN, allow_pickle=False) as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files if name != "config"}
        config = json.loads(str(archive["config"]))
    ring = RingBuffers(config["num_classes"], config["max_size"])
    for part in (slice(0, 4), slice(4, 5), slice(5, 15)):
        ring.push(arrays["samples"][part], arrays["labels"][part].long())
    return arrays, config, ring


def test_golden_buffers(golden):
    arrays, _, ring = golden
    assert torch.equal(ring.next_slot, arrays["ptr"].long())
    assert torch.equal(ring.filled, arrays["count"].long())
    assert (ring.filled == ring.size).any() and (ring.filled < ring.size).any()
    for entries, expected, count in zip(ring.entries, arrays["bank"], ring.filled, strict=True):
        assert torch.equal(entries[:count], expected[:count])


def test_golden_samples(golden):
    """The slots are those that the published code's generator chooses, query by query."""
    arrays, config, ring = golden
    random = np.random.RandomState(config["numpy_legacy_seed"])
    labels, count = arrays["query_labels"].long(), config["n_samples"]
    filled = ring.filled[labels].tolist()
    slots = [random.choice(available, count, replace=available < count) for available in filled]
    assert torch.equal(ring.read(labels, torch.from_numpy(np.stack(slots))), arrays["sampled"])


def numbers(*values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1)


def contents(ring, buffer):
    """Oldest first."""
    entries = ring.entries[buffer, : ring.filled[buffer], 0].tolist()
    start = ring.next_slot[buffer] if len(entries) == ring.size else 0
    return entries[start:] + entries[:start]


def test_more_than_fits_leaves_the_newest():
    at_once, one_by_one = RingBuffers(2, 3), RingBuffers(2, 3)
    samples = torch.arange(11.0).view(-1, 1)
    buffers = torch.tensor([0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0])
    at_once.push(samples[:1], buffers[:1])
    at_once.push(samples[1:], buffers[1:])
    for sample, buffer in zip(samples, buffers, strict=True):
        one_by_one.push(sample.unsqueeze(0), buffer.unsqueeze(0))
    assert contents(at_once, 0) == [8, 9, 10] and contents(at_once, 1) == [2, 7]
    assert torch.equal(at_once.next_slot, one_by_one.next_slot)
    assert torch.equal(at_once.entries[0], one_by_one.entries[0])


@pytest.mark.parametrize(("storage", "step"), [("float32", 0.0), ("float16", 2.0**-12), ("uint8", 1 / 255)], ids=str)
def test_storage_rounds(storage, step):
    samples = torch.linspace(-1, 1, 1001).view(1, -1)
    ring = RingBuffers(1, 2, storage)
    ring.push(samples, torch.tensor([0]))
    assert ring.entries.dtype == getattr(torch, storage)
    stored = ring.read(torch.tensor([0]), torch.tensor([[0]]))[0, 0]
    found = widened(stored)
    assert stored.dtype == ring.entries.dtype and found.dtype == torch.float32
    errors = (found - samples[0]).abs()
    assert step / 3 <= errors.max() <= step * 1.0001
    # What was read is kept as it is.
    ring.push(found.unsqueeze(0), torch.tensor([0]))
    assert torch.equal(ring.entries[0, 0], ring.entries[0, 1])


def test_pixels_beyond_the_range_are_clipped():
    ring = RingBuffers(1, 1, "uint8")
    ring.push(numbers(-1.2, 1.3).view(1, 2), torch.tensor([0]))
    assert widened(ring.read(torch.tensor([0]), torch.tensor([[0]]))).flatten().tolist() == [-1, 1]


def queue(per_class=8, overall=20, **more):
    """Classes 0 and 1 have 10 and 3 samples, class 2 has none; a sample is its number."""
    section = QueueSection(per_class=per_class, overall=overall, **more)
    filled = SampleQueue(3, section)
    filled.push(torch.arange(13.0).view(-1, 1, 1, 1), torch.tensor([0] * 10 + [1] * 3))
    return filled


def test_draws_are_different_samples_where_there_are_enough():
    found = queue().of_class(torch.zeros(500, dtype=torch.int64), 5, Draws(0, torch.arange(500))).flatten(1)
    assert all(len(row.unique()) == 5 for row in found)
    share = torch.bincount(found.flatten().long(), minlength=10) / found.numel()
    assert share[:2].sum() == 0  # two of ten have been overwritten
    assert (share[2:] - 1 / 8).abs().max() < 0.02
    every = queue().of_class(torch.tensor([0]), 8, Draws(0, torch.tensor([0])))
    assert sorted(every.flatten().tolist()) == list(range(2, 10))
    pairs = queue().of_class(torch.ones(500, dtype=torch.int64), 2, Draws(0, torch.arange(500))).flatten(1)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert sorted(pairs.unique().tolist()) == [10, 11, 12]  # slots that are not filled yet are left out


def test_draws_repeat_samples_where_there_are_too_few():
    found = queue().of_class(torch.ones(500, dtype=torch.int64), 5, Draws(0, torch.arange(500))).flatten()
    share = torch.bincount(found.long() - 10) / len(found)
    assert (share - 1 / 3).abs().max() < 0.03 and len(share) == 3
    # Also more than the buffer could hold.
    assert queue().of_class(torch.tensor([0, 1]), 30, Draws(0, torch.arange(2))).shape == (2, 30, 1, 1, 1)


def test_draws_of_any_class():
    found = queue(overall=12).overall(6, Draws(0, torch.arange(300))).flatten(1)
    assert all(len(row.unique()) == 6 for row in found)
    share = torch.bincount(found.flatten().long(), minlength=13) / found.numel()
    assert share[0] == 0 and (share[1:] - 1 / 12).abs().max() < 0.02


def test_a_class_without_samples_is_refused():
    with pytest.raises(ValueError, match="the queue of class 2 is empty"):
        queue().of_class(torch.tensor([0, 2]), 4, Draws(0, torch.arange(2)))


def test_the_same_draws_give_the_same_samples():
    labels, draws = torch.tensor([0, 1, 0, 0]), Draws(3, torch.arange(4))
    found = queue().of_class(labels, 4, draws)
    assert torch.equal(queue().of_class(labels, 4, draws), found)
    assert torch.equal(queue().of_class(labels[2:], 4, draws[2:]), found[2:])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(queue().of_class(labels, 4, Draws(4, torch.arange(4))), found)


def test_without_classes_all_samples_are_one_class():
    labels = torch.tensor([5, 7])
    unconditional = SampleQueue(0, QueueSection(per_class=4))
    unconditional.push(numbers(1, 2).view(2, 1, 1, 1), labels)
    found = unconditional.of_class(labels, 2, Draws(0, torch.arange(2)))
    assert sorted(found[0].flatten().tolist()) == sorted(found[1].flatten().tolist()) == [1, 2]


def test_state_goes_on_where_it_was_saved(tmp_path):
    first, second = queue(storage="float16"), SampleQueue(3, QueueSection(8, 20, "float16"))
    torch.save(first.state(), tmp_path / "state.pt")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for it in (first, second):
        it.push(torch.arange(20.0, 25.0).view(-1, 1, 1, 1), torch.tensor([0, 1, 2, 2, 0]))
    labels, draws = torch.tensor([0, 1, 2]), Draws(0, torch.arange(3))
    assert torch.equal(first.of_class(labels, 6, draws), second.of_class(labels, 6, draws))
    assert torch.equal(first.overall(9, draws), second.overall(9, draws))
    assert SampleQueue(3, QueueSection()).state() == {}


@pytest.mark.parametrize(
    "other",
    [
        SampleQueue(3, QueueSection(7, 20)),
        SampleQueue(3, QueueSection(8, 21)),
        SampleQueue(4, QueueSection(8, 20)),
        SampleQueue(3, QueueSection(8, 20, "float16")),
    ],
    ids=["per_class", "overall", "classes", "storage"],
)
def test_state_of_another_size_is_refused(other):
    with pytest.raises(ValueError, match="its queue has"):
        other.load_state(queue().state())
    with pytest.raises(KeyError):
        other.load_state({})
