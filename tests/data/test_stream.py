"""The training stream: the same for any number of processes and loader workers, and after a resume."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from genflow.data.base import Dataset
from genflow.data.stream import StreamBatchSampler, TrainingStream, build_loader, epoch_permutation
from genflow.draws import Draws
from genflow.errors import UserError


class Counting(Dataset):
    """Image n is n plus the sample's own noise; label n."""

    num_classes = 10
    image_shape = (1, 2, 2)

    def __len__(self) -> int:
        return 10

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        images = indices.float().view(-1, 1, 1, 1) + draws.normal("noise", self.image_shape)
        return {"images": images, "labels": indices}


def first_batches(count: int, global_batch: int = 4, seed: int = 0, **options) -> list[dict]:
    return list(islice(build_loader(Counting(), global_batch, seed, **options), count))


def equal(one: dict, two: dict) -> bool:
    keys = ("images", "labels")
    same_draws = one["draws"].seed == two["draws"].seed and torch.equal(one["draws"].positions, two["draws"].positions)
    return same_draws and all(torch.equal(one[key], two[key]) for key in keys)


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    labels = torch.cat([batch["labels"] for batch in first_batches(10)])
    epochs = labels.view(4, 10)
    assert all(epoch.sort().values.equal(torch.arange(10)) for epoch in epochs)
    assert len(epochs.unique(dim=0)) == 4
    assert torch.equal(epochs[2], epoch_permutation(10, 0, 2))


def test_permutation_is_a_function_of_seed_and_epoch():
    torch.manual_seed(1)
    before = epoch_permutation(100, 5, 3)
    torch.manual_seed(2)
    assert torch.equal(before, epoch_permutation(100, 5, 3))
    state = torch.get_rng_state()
    orders = [epoch_permutation(100, seed, epoch) for seed in (0, 1, 5, -1, 2**32, 2**32 + 5) for epoch in range(4)]
    assert torch.equal(state, torch.get_rng_state())
    assert len(torch.stack(orders).unique(dim=0)) == len(orders)
    assert torch.equal(epoch_permutation(100, -1, 0), epoch_permutation(100, 2**64 - 1, 0))


def test_batches_that_straddle_epochs_equal_single_reads():
    stream = TrainingStream(Counting(), 3)
    positions = list(range(7, 45))
    together = stream.__getitems__(positions)
    singly = [TrainingStream(Counting(), 3).__getitems__([position]) for position in positions]
    assert torch.equal(together["images"], torch.cat([one["images"] for one in singly]))
    backwards = stream.__getitems__(positions[::-1])
    assert torch.equal(backwards["images"].flip(0), together["images"])


def test_draws_are_those_of_the_positions():
    batches = first_batches(3, seed=-8)
    assert torch.cat([batch["draws"].positions for batch in batches]).tolist() == list(range(12))
    for batch in batches:
        assert isinstance(batch["draws"], Draws)
        assert batch["draws"].seed == -8
        noise = batch["images"] - batch["labels"].float().view(-1, 1, 1, 1)
        assert torch.allclose(noise, batch["draws"].normal("noise", (1, 2, 2)), atol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_ranks_together_equal_one(num_workers):
    whole = first_batches(7, num_workers=num_workers)
    shares = [first_batches(7, rank=rank, world_size=2, num_workers=num_workers) for rank in (0, 1)]
    for one, left, right in zip(whole, *shares, strict=True):
        joined = {key: torch.cat([left[key], right[key]]) for key in ("images", "labels")}
        positions = torch.cat([left["draws"].positions, right["draws"].positions])
        assert equal(one, {**joined, "draws": Draws(0, positions)})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_start_step_continues_exactly_where_another_run_stopped(num_workers):
    reference = first_batches(9)
    resumed = first_batches(4, start_step=5, num_workers=num_workers)
    assert all(equal(one, two) for one, two in zip(reference[5:], resumed, strict=True))


def test_workers_do_not_change_the_batches():
    pairs = zip(first_batches(8), first_batches(8, num_workers=2), strict=True)
    assert all(equal(one, two) for one, two in pairs)


def test_seeds_change_order_and_noise():
    one, two = first_batches(1, global_batch=10, seed=0)[0], first_batches(1, global_batch=10, seed=1)[0]
    assert not torch.equal(one["labels"], two["labels"])
    assert not equal(one, two)


def test_sampler_shares():
    batches = list(islice(StreamBatchSampler(2, 6, 1, 3), 2))
    assert batches == [[14, 15], [20, 21]]


@pytest.mark.parametrize(("global_batch", "world_size"), [(5, 2), (3, 4), (0, 1), (-4, 2)])
def test_batches_that_cannot_be_shared_are_refused(global_batch, world_size):
    message = f"train_dataloader.batch_size: found {global_batch}, expected .* {world_size} processes"
    with pytest.raises(UserError, match=message):
        build_loader(Counting(), global_batch, 0, world_size=world_size)


class Unreadable(Counting):
    def batch(self, indices, draws):
        raise UserError("picture.png: not a readable picture")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_sample_is_one_line_whoever_reads_it(num_workers):
    loader = build_loader(Unreadable(), 4, seed=0, num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert str(caught.value) == "picture.png: not a readable picture"
