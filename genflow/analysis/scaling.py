"""How an update divides among GPUs: seconds of arithmetic and of communication, by formulas (docs/scaling.md).

Nothing here is measured. What a process computes is counted by :mod:`genflow.engine.update_cost`; rates are those of a
data sheet, and the shares of them that a training reaches are assumptions.
"""

from dataclasses import dataclass

from genflow.analysis.chips import H100_SXM

#: Bytes of a gradient or weight in float32, and in bfloat16.
FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Macs:
    """Multiply-adds by the precision of their factors.

    Args:
        reduced: of bfloat16 or float16.
        full: of float32.
    """

    reduced: float = 0.0
    full: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.reduced + self.full

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.reduced + other.reduced, self.full + other.full)

    def times(self, factor: float) -> "Macs":
        """So many times as many."""
        return Macs(self.reduced * factor, self.full * factor)


@dataclass(frozen=True)
class UpdateCost:
    """What one process does in an update.

    Args:
        gpus: processes that share the update.
        rows: of the process: images, or what a feed makes of them.
        parts: micro-batches that it runs in turn.
        forward: multiply-adds without those of the backward pass; frozen networks, passes without gradient.
        backward: those of the backward pass, layers that checkpointing computes again among them.
        optimizer: those of the optimizer's step, of a process that has most of them.
        gathered: bytes that the optimizer gathers in every process.
        sharers: processes, neighbours, each of which has computed an equal part of them.
        operators: calls of operators of torch that start work on the device, without the optimizer's.
        parameters: numbers that are trained.
        resident: bytes that stay on the device, by what they are: trained weights, gradients, the state of the
            optimizer, averages, frozen weights.
    """

    gpus: int
    rows: float
    parts: int
    forward: Macs
    backward: Macs
    optimizer: Macs
    gathered: int
    sharers: int
    operators: float
    parameters: int
    resident: dict[str, int]


@dataclass(frozen=True)
class Machine:
    """One GPU and its links; the defaults are an H100 SXM with 80 GB in nodes of 8.

    Args:
        reduced_rate, full_rate: multiply-adds per second in bfloat16 and float32, see
            :class:`~genflow.analysis.chips.Chip`.
        memory_rate: bytes per second of its memory (data sheet).
        node: GPUs of a node.
        node_link: bytes per second and direction between two GPUs of a node: half of NVLink's 900 GB/s (data sheet).
        network_link: bytes per second and direction of a GPU's network card: 400 Gb/s (data sheet).
        reduced_share, full_share, link_share: what a training reaches of these rates (assumed).
        launch: seconds in which the host starts an operator (assumed).
    """

    reduced_rate: float = H100_SXM.reduced_rate
    full_rate: float = H100_SXM.full_rate
    memory_rate: float = 3.35e12
    node: int = 8
    node_link: float = 450e9
    network_link: float = 50e9
    reduced_share: float = 0.35
    full_share: float = 0.6
    link_share: float = 0.8
    launch: float = 5e-6

    def arithmetic(self, macs: Macs) -> float:
        """Seconds of multiply-adds."""
        full = macs.full / (self.full_rate * self.full_share)
        return macs.reduced / (self.reduced_rate * self.reduced_share) + full

    def ring_rate(self, gpus: int) -> float:
        """Bytes per second that pass every GPU of a ring.

        Between nodes there are as many rings as a node has GPUs, each with a part of the bytes; each enters and leaves
        a node by the card of another GPU and passes all its GPUs on the way, so that all cards of a node work.
        """
        rate = self.node_link if gpus <= self.node else min(self.node_link, self.node * self.network_link)
        return rate * self.link_share


def ring_gather(size: float, gpus: int) -> float:
    """Bytes that every GPU sends when ``size`` bytes, of which each has an equal part, are gathered in all.

    So many also when ``size`` bytes of each are summed and every GPU gets its part (reduce-scatter).
    """
    return (gpus - 1) / gpus * size


def ring_all_reduce(size: float, gpus: int) -> float:
    """Bytes that every GPU sends when ``size`` bytes of each are summed in all: a reduce-scatter, then a gather."""
    return 2 * ring_gather(size, gpus)


def fully_sharded(parameters: float, gpus: int, parts: int = 1, weight: int = FLOAT32) -> float:
    """Bytes that every GPU sends in an update if weights, gradients and optimizer are divided among all GPUs.

    In every micro-batch weights are gathered in the forward and the backward pass, and gradients summed in float32.

    Args:
        parameters: that are trained.
        gpus: that divide them.
        parts: micro-batches.
        weight: bytes of a weight on its way.
    """
    return parts * (2 * ring_gather(weight * parameters, gpus) + ring_gather(FLOAT32 * parameters, gpus))


@dataclass(frozen=True)
class ShardedTraffic:
    """Bytes that every GPU sends in an update with divided weights, gradients and optimizer: :func:`fully_sharded`.

    Args:
        float32, bfloat16: divided among all GPUs, weights being sent in one or the other; GenFlow sends float32.
        within, between: hybrid sharding in float32: every node divides them among its own GPUs, and between nodes
            every GPU sums the gradients of its part.
    """

    float32: float
    bfloat16: float
    within: float
    between: float


def sharded_traffic(cost: UpdateCost, machine: Machine = Machine()) -> ShardedTraffic:
    """What sharding would send in the update; DDP sends :func:`ring_all_reduce` of the gradients."""
    shards = min(machine.node, cost.gpus)
    return ShardedTraffic(
        float32=fully_sharded(cost.parameters, cost.gpus, cost.parts, FLOAT32),
        bfloat16=fully_sharded(cost.parameters, cost.gpus, cost.parts, BFLOAT16),
        within=fully_sharded(cost.parameters, shards, cost.parts, FLOAT32),
        between=cost.parts * ring_all_reduce(FLOAT32 * cost.parameters / shards, max(1, cost.gpus // shards)),
    )


@dataclass(frozen=True)
class Estimate:
    """Seconds of an update.

    Args:
        networks: forward and backward pass; the longer of arithmetic and the host's starting of operators.
        host_bound: whether the host takes longer.
        sent: bytes that every GPU sends to sum the gradients.
        communication: seconds of this sum alone.
        exposed: those that the backward pass of the last micro-batch does not hide.
        gather: those in which the optimizer's results are gathered, hidden by nothing.
        step: optimizer, this gather, averages and clipping.
    """

    networks: float
    host_bound: bool
    sent: float
    communication: float
    exposed: float
    gather: float
    step: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.networks + self.exposed + self.step

    def hours(self, updates: int) -> float:
        """Of so many updates."""
        return updates * self.seconds / 3600


def estimate(cost: UpdateCost, machine: Machine = Machine()) -> Estimate:
    """Seconds of an update under DDP, which sums the gradients of the last micro-batch while it computes them.

    The step is the optimizer's arithmetic, the gather of what processes share of it, and one reading and one writing of
    all that it and the averages touch.
    """
    arithmetic = machine.arithmetic(cost.forward + cost.backward)
    host = cost.operators * machine.launch
    networks = max(arithmetic, host)
    hidden = networks * machine.arithmetic(cost.backward) / arithmetic / cost.parts if arithmetic else 0.0
    sent = ring_all_reduce(cost.resident["gradients"], cost.gpus)
    communication = sent / machine.ring_rate(cost.gpus)
    gather = ring_gather(cost.gathered, cost.sharers) / machine.ring_rate(cost.sharers)
    touched = sum(size for name, size in cost.resident.items() if name != "frozen")
    return Estimate(
        networks=networks,
        host_bound=host > arithmetic,
        sent=sent,
        communication=communication,
        exposed=max(0.0, communication - hidden),
        gather=gather,
        step=machine.arithmetic(cost.optimizer) + gather + 2 * touched / machine.memory_rate,
    )
