"""The rows of an update: labels of its images, each with samples from the queue."""

import pytest
import torch

from genflow.data.queue_feed import QueueFeed
from genflow.data.sample_queue import QueueSection
from genflow.draws import Draws
from genflow.errors import UserError

CLASSES, BATCH, LABELS, POSITIVES, NEGATIVES = 5, 8, 3, 6, 2
SHAPE = (2, 4, 4)


def build(num_classes=CLASSES, labels=LABELS, negatives=NEGATIVES, **options):
    section = QueueSection(**{"per_class": 16, "overall": 32, **options})
    return QueueFeed(section, num_classes, labels, POSITIVES, negatives)


def batch(update=0, seed=0, rank=0, processes=1, classes=CLASSES):
    """A process's part of an update's images; the first number of an image is its class, the second its position."""
    share = BATCH // processes
    first = update * BATCH + rank * share
    draws = Draws(seed, torch.arange(first, first + share), BATCH)
    images = draws.normal("images", SHAPE)
    labels = draws.positions % classes
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels.float(), draws.positions.float()
    return {"images": images, "labels": labels, "draws": draws}


def fed(feed, it):
    feed.push(it)
    return feed.rows(it)


def prepared(feed, updates=3, **options):
    """The rows of the last of some updates."""
    for update in range(updates):
        rows = fed(feed, batch(update, **options))
    return rows


def test_rows_of_an_update():
    rows = prepared(build())
    labels = rows["labels"]
    assert rows["images"].shape == (LABELS, POSITIVES, *SHAPE)
    assert rows["negatives"].shape == (LABELS, NEGATIVES, *SHAPE)
    assert torch.equal(rows["images"][..., 0, 0, 0], labels.float().unsqueeze(1).expand(-1, POSITIVES))
    seen = rows["images"][..., 0, 0, 1]
    assert 16 <= seen.max() < 24 and seen.min() < 8  # of this update and of past ones
    assert len(rows["draws"]) == LABELS == rows["draws"].batch_size
    assert rows["draws"].positions.tolist() == [6, 7, 8]  # the third update's


@pytest.mark.parametrize(("negatives", "storage"), [(NEGATIVES, "uint8"), (0, "float32")])
def test_rows_without_numbers_have_the_shapes_of_rows(negatives, storage):
    feed = build(labels=4, negatives=negatives, storage=storage)
    rows = prepared(feed, processes=2)
    del rows["draws"]
    without = feed.rows_on_meta(SHAPE, 2)
    assert all(value.is_meta for value in without.values())
    assert {name: (value.shape, value.dtype) for name, value in without.items()} == {
        name: (value.shape, value.dtype) for name, value in rows.items()
    }


def test_labels_are_those_of_different_images_of_the_batch():
    feed, chosen = build(labels=BATCH), []
    for update in range(3):
        it = batch(update, classes=BATCH - 3)
        labels = fed(feed, it)["labels"]
        assert sorted(labels.tolist()) == sorted(it["labels"].tolist())
    feed = build(num_classes=BATCH)
    for update in range(100):
        labels = fed(feed, batch(update, classes=BATCH))["labels"]
        assert len(labels.unique()) == LABELS
        chosen.append(labels)
    share = torch.bincount(torch.cat(chosen), minlength=BATCH) / (100 * LABELS)
    assert (share - 1 / BATCH).abs().max() < 0.05


def test_rows_are_a_function_of_seed_update_and_rank():
    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in ("images", "labels", "negatives"))

    rows = prepared(build())
    assert same(rows, prepared(build()))
    assert not same(rows, prepared(build(), seed=1))
    assert not same(rows, prepared(build(), updates=4))
    one, other = (prepared(build(labels=4), rank=rank, processes=2) for rank in range(2))
    assert [it["draws"].positions.tolist() for it in (one, other)] == [[8, 9], [10, 11]]
    assert one["draws"].batch_size == 4
    own = [it["images"][..., 0, 0, 1] % BATCH for it in (one, other)]
    assert own[0].max() < 4 <= own[1].min()  # every process has its own queue


def test_rows_are_as_the_queue_stores_them():
    rows = prepared(build(storage="uint8"))
    assert rows["images"].dtype == rows["negatives"].dtype == torch.uint8
    pixels = prepared(build())["images"].clamp(-1, 1)
    assert torch.equal(rows["images"], ((pixels + 1) * 127.5).round().byte())


def test_without_negatives_there_are_none():
    assert prepared(build(negatives=0)).keys() == {"images", "labels", "draws"}


def test_batches_that_do_not_fit_are_refused():
    build(labels=8).check(8, 4)
    with pytest.raises(UserError, match=r"model\.labels_per_update: found 8, expected at most .*batch_size, 7"):
        build(labels=8).check(7, 1)
    with pytest.raises(UserError, match=r"model\.labels_per_update: found 3, expected a multiple of the 2 processes"):
        build().check(8, 2)


def test_a_batch_that_comes_again_is_pushed_once():
    """A run that goes on after it diverged prepares the failed update a second time."""
    feed = build()
    prepared(feed)
    before = {name: value.clone() for name, value in feed.state().items()}
    again = build()
    again.load_state({name: value.clone() for name, value in before.items()})
    fed(again, batch(2))
    after = again.state()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_queue_is_saved_or_filled_again():
    assert build().replay == 0 and build().state().keys() == {"newest_update"}
    refilled = build(resume="refill", refill_updates=7)
    assert refilled.replay == 7 and refilled.state() is None
