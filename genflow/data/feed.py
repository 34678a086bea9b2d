"""The contract of feeds: what a method trains on where that is not the images of a batch."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


class Feed:
    """Makes the rows of an update from what a process has seen of the data set, on the CPU.

    A method builds one and keeps it as ``feed``; the engine calls it. What a feed keeps is this process's alone, so it
    is no function of seed and update as all else is: it is saved beside checkpoints, or filled again from past updates.
    """

    #: How many past updates' batches a resumed run pushes again before it goes on.
    replay: int = 0

    #: How images may be sent from the loader's processes; None as the data set gives them.
    stored: Callable[[Tensor], Tensor] | None = None

    def check(self, batch_size: int, processes: int) -> None:
        """See that rows can be made of ``batch_size`` samples per update over all ``processes``.

        Raises:
            UserError: they cannot.
        """

    def push(self, batch: Mapping[str, Any]) -> None:
        """Take note of a batch of the data set."""
        raise NotImplementedError

    def rows(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the method's ``forward`` for the update of a batch that was pushed.

        All have equally many rows, ``labels`` and ``draws`` among them. Micro-batches divide the rows.
        """
        raise NotImplementedError

    def rows_on_meta(self, image_shape: tuple[int, ...], processes: int) -> dict[str, Tensor]:
        """What :meth:`rows` returns in one of so many processes, without ``draws`` and without numbers, for counting.

        Args:
            image_shape: (C, H, W) of a sample of the data set.
            processes: that share an update.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor] | None:
        """What to save beside a checkpoint; None for nothing."""
        return None

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            ValueError, KeyError: it belongs to another recipe.
        """
