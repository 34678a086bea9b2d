"""Rows made ahead by a thread: in order, as many as are wanted, mistakes where they belong."""

import itertools
import threading
from types import SimpleNamespace

import pytest
import torch

from genflow.engine.prefetch import Rows
from genflow.errors import UserError

CPU = torch.device("cpu")


class Feed:
    """Counts what it was given, and in which thread."""

    def __init__(self):
        self.pushed, self.threads = [], set()

    def push(self, batch):
        self.pushed.append(int(batch["images"]))
        self.threads.add(threading.get_ident())

    def rows(self, batch):
        return {"images": -batch["images"]}


def batches(fail_at=None):
    for number in itertools.count():
        if number == fail_at:
            raise UserError("unreadable")
        yield {"images": torch.tensor(number)}


@pytest.mark.parametrize("ahead", [False, True])
def test_rows_come_in_order(ahead):
    feed = Feed()
    rows = Rows(batches(), SimpleNamespace(feed=feed), CPU, 3, ahead)
    assert [int(next(rows)["images"]) for _ in range(3)] == [0, -1, -2]
    rows.close()
    assert feed.pushed == [0, 1, 2]  # not one more: the state of the feed is that of the last update
    assert (threading.get_ident() in feed.threads) != ahead


def test_the_next_rows_are_made_while_nobody_waits():
    feed = Feed()
    rows = Rows(batches(), SimpleNamespace(feed=feed), CPU, 3, ahead=True)
    next(rows)
    rows.settle()
    assert feed.pushed == [0, 1]
    rows.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_mistake_comes_with_its_own_update(ahead):
    rows = Rows(batches(fail_at=2), SimpleNamespace(feed=None), CPU, 5, ahead)
    assert [int(next(rows)["images"]) for _ in range(2)] == [0, 1]
    rows.settle()
    with pytest.raises(UserError, match="unreadable"):
        next(rows)
    rows.close()
