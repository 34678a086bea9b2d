"""The contract of distances between distributions, from samples of both."""

from typing import Any

from torch import Tensor, nn

from genflow.draws import Draws


class DistributionDistance(nn.Module):
    """How far generated samples are, all together, from real ones, in features of both.

    Features are (N, T, C): N samples, T positions, C channels. Whoever calls it passes the samples of the whole update,
    of all processes and micro-batches, so that an implementation need not know of either. What it keeps from one update
    to the next are buffers, which checkpoints hold; :meth:`begin` makes them.
    """

    kind = "distribution distance"
    _has_started: bool = False

    def begin(self, positions: int, width: int) -> None:
        """Make room for what is kept about features of ``positions`` positions T and ``width`` channels C."""

    def observe(self, generated: Tensor, real: Tensor) -> None:
        """Take features of both, (N, T, C) without a graph, into the statistics with which training starts."""

    def forward(self, generated: Tensor, real: Tensor, draws: Draws) -> Tensor:
        """The distance, a scalar.

        Args:
            generated: (N, T, C) float32 or float64, which alone carries a gradient.
            real: (M, T, C) likewise.
            draws: of one sample, the same in all processes, for what is random in the distance itself.
        """
        raise NotImplementedError

    def after_update(self) -> None:
        """Take the last generated samples into the statistics."""

    def has_started(self, count: Tensor) -> bool:
        """Whether ``count``, a buffer that never falls, is above 0; the device is asked until it is, and not again."""
        self._has_started = self._has_started or bool(count > 0)
        return self._has_started

    def forget(self) -> None:
        """Drop what was derived from buffers, which have become others."""

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._has_started = False
        self.forget()
