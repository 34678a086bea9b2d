"""Labels, each with real samples from a queue, in the place of a batch's images (Drifting, arXiv 2602.04770)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genflow.data.feed import Feed
from genflow.data.sample_queue import QueueSection, SampleQueue, stored
from genflow.draws import Draws
from genflow.errors import UserError


class QueueFeed(Feed):
    """Pushes a process's images to its queue, and chooses its share of the labels of an update among them.

    Args:
        section: sizes of the queue, and what becomes of it on a resume.
        num_classes: classes of the data; 0 for none.
        labels_per_update: labels, over all processes.
        positives: real samples of each label's class, P.
        negatives: real samples of any class for each label, N; 0 for none.
    """

    def __init__(
        self, section: QueueSection, num_classes: int, labels_per_update: int, positives: int, negatives: int = 0
    ):
        self.section = section
        self.queue = SampleQueue(num_classes, section)
        self.labels_per_update = labels_per_update
        self.positives = positives
        self.negatives = negatives
        self.stored = partial(stored, storage=section.storage)
        self._newest = -1  # the last update whose images are in the queue

    @property
    def replay(self) -> int:
        return self.section.refill_updates if self.section.resume == "refill" else 0

    def check(self, batch_size: int, processes: int) -> None:
        found = f"model.labels_per_update: found {self.labels_per_update}"
        if self.labels_per_update > batch_size:
            raise UserError(f"{found}, expected at most the train_dataloader.batch_size, {batch_size}")
        if self.labels_per_update % processes:
            raise UserError(f"{found}, expected a multiple of the {processes} processes")

    def push(self, batch: Mapping[str, Any]) -> None:
        """Push a batch to the queue, once: a run that goes on after it diverged sees one again."""
        update = int(batch["draws"].positions[0]) // batch["draws"].batch_size
        if update > self._newest:
            self._newest = update
            self.queue.push(batch["images"], batch["labels"])

    def rows(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Choose labels and draw their samples.

        Returns:
            L rows, one for each of this process's share of the labels: ``images`` (L, P, C, H, W) of the class and
            ``negatives`` (L, N, C, H, W) of any class, if there are any, both as the queue stores them; ``labels``
            (L,); ``draws``.
        """
        labels, draws = batch["labels"], batch["draws"]
        count = len(labels)
        share = self.labels_per_update * count // draws.batch_size
        chosen = labels[draws.uniform("label choice").argsort()[:share]]
        update, rank = draws.positions[0] // draws.batch_size, draws.batch_indices[0] // count
        positions = update * self.labels_per_update + rank * share + torch.arange(share)
        groups = Draws(draws.seed, positions, self.labels_per_update)
        rows = {"images": self.queue.of_class(chosen, self.positives, groups), "labels": chosen, "draws": groups}
        if self.negatives:
            rows["negatives"] = self.queue.overall(self.negatives, groups)
        return rows

    def rows_on_meta(self, image_shape: tuple[int, ...], processes: int) -> dict[str, Tensor]:
        share, storage = self.labels_per_update // processes, getattr(torch, self.section.storage)

        def samples(count: int) -> Tensor:
            return torch.empty(share, count, *image_shape, dtype=storage, device="meta")

        rows = {"images": samples(self.positives), "labels": torch.empty(share, dtype=torch.int64, device="meta")}
        return rows | {"negatives": samples(self.negatives)} if self.negatives else rows

    def state(self) -> dict[str, Tensor] | None:
        if self.section.resume == "refill":
            return None
        return {**self.queue.state(), "newest_update": torch.tensor(self._newest)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._newest = int(state["newest_update"])
        self.queue.load_state(state)
