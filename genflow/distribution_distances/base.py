"""The contract of distances between distributions, from samples of both."""

from torch import Tensor, nn

from genflow.draws import Draws


class DistributionDistance(nn.Module):
    """How far generated samples are, all together, from real ones, in features of both.

    Features are (N, T, C): N samples, T positions, C channels. Whoever calls it passes the samples of the whole update,
    of all processes and micro-batches, so that an implementation need not know of either. What it keeps from one update
    to the next are buffers, which checkpoints hold; :meth:`begin` makes them.
    """

    kind = "distribution distance"

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
