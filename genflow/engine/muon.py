"""Muon for matrices, with the Adam beside it that the published code of pMF uses (docs/pmf.md, P12)."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Literal

import torch
from mmengine.dist import get_dist_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from genflow.engine.sharding import divided_like
from genflow.ranges import Betas, DepthOrNone, Share, Size
from genflow.registry import OPTIMIZERS

#: Coefficients of the quintic Newton-Schulz iteration.
_QUINTIC = (3.4445, -4.7750, 2.0315)
#: Numbers in one stack of matrices that are orthogonalised together; bounds the memory on top.
_STACK = 2**25
#: Processes that share the matrices of a stack, at most; every such group works on all of them.
_SHARERS = 8
#: What matrices of one stack have in common besides their shape.
_RULE = ("momentum", "eps", "newton_schulz_steps", "newton_schulz_precision")

Precision = Literal["float32", "bfloat16"]


@OPTIMIZERS.register_module()
class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for matrices; Adam for everything else.

    Both mix momentum and gradient as Nesterov does, with the bias corrected for either part. Matrices of equal shape
    are orthogonalised in one batch. A zero gradient gives a zero update. There is no weight decay.

    Args:
        params: parameters, or groups; ``matrices`` of a group says how many matrices each parameter stacks along its
            rows, 0 for those that go to Adam. Without groups, two-dimensional parameters are matrices.
        lr: rate of both parts; a matrix's step is scaled by sqrt(max(1, rows / columns)).
        momentum: of matrices.
        betas: of Adam.
        eps: added to the norm of a matrix, and to the root of Adam's second moment.
        newton_schulz_steps: of the orthogonalisation.
        newton_schulz_precision: of its products on a GPU; a CPU without instructions for bfloat16 takes sixty times as
            long, so that float32 it is on CPUs.

    Raises:
        ValueError: ``momentum`` or one of ``betas`` is 1, so that gradients would never count.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Size = 1e-3,
        momentum: Share = 0.95,
        betas: Betas = (0.9, 0.95),
        eps: Size = 1e-8,
        newton_schulz_steps: DepthOrNone = 5,
        newton_schulz_precision: Precision = "float32",
    ):
        if 1 in (momentum, *betas):
            raise ValueError("momentum and betas must be below 1")
        params = list(params)
        if params and not isinstance(params[0], dict):
            params = [
                {"params": [value for value in params if (value.dim() == 2) == bool(matrices)], "matrices": matrices}
                for matrices in (0, 1)
            ]
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "newton_schulz_steps": newton_schulz_steps,
            "newton_schulz_precision": newton_schulz_precision,
            "matrices": 0,
        }
        super().__init__([group for group in params if group["params"]], defaults)

    @classmethod
    def parameter_groups(cls, module: nn.Module) -> list[dict[str, Any]]:
        """The groups of a module tree's trainable parameters.

        A module's class says in ``stacked`` which of its parameters are several matrices (their number), or look like
        a matrix and are a table or list of vectors (0); embeddings are known to be tables.
        """
        groups: dict[int, list[nn.Parameter]] = {}
        seen: set[int] = set()
        for owner in module.modules():
            declared = getattr(owner, "stacked", {"weight": 0} if isinstance(owner, nn.Embedding) else {})
            for name, parameter in owner.named_parameters():
                if name in declared or "." not in name:
                    if id(parameter) in seen or not parameter.requires_grad:
                        continue
                    seen.add(id(parameter))
                    matrices = declared.get(name, 1) if parameter.dim() == 2 else 0
                    groups.setdefault(matrices, []).append(parameter)
        return [{"params": groups[matrices], "matrices": matrices} for matrices in sorted(groups)]

    @torch.no_grad()
    def step(self) -> None:
        """One update of the parameters that have gradients; collective where several processes train."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["momentum"] = torch.zeros_like(parameter)
                    if not group["matrices"]:
                        state["square"] = torch.zeros_like(parameter)
                state["step"] += 1
            if not group["matrices"]:
                self._adam(group, parameters)
        for entries, rule in self._stacks():
            _move(entries, *rule)

    def shared(self, processes: int) -> tuple[float, int, int]:
        """How processes share the orthogonalisation of the parameters that have gradients; for estimates.

        Args:
            processes: that train.

        Returns:
            A process's part of the multiply-adds, of one that has most of the matrices; bytes of the results that
            are gathered in every process, filled up to an equal number of matrices from each; how many neighbours they
            come from.
        """
        sharers, own, together, gathered = _sharers(processes), 0, 0, 0
        for entries, (_, _, steps, _) in self._stacks():
            parameter, _, matrices, _ = entries[0]
            short, long = sorted((parameter.shape[0] // matrices, parameter.shape[1]))
            matrices = sum(entry[2] for entry in entries)
            count = _most(matrices, sharers)
            products = steps * (2 * short**2 * long + short**3)
            own += count * products
            together += matrices * products
            if sharers > 1:
                gathered += sharers * count * short * long * parameter.element_size()
        return own / together if together else 1.0, gathered, sharers

    def _stacks(self) -> Iterator[tuple[list[tuple], tuple]]:
        """(parameter, state, matrices, rate) of matrices that are orthogonalised together, and their rule."""
        stacks: dict[tuple, list[tuple]] = {}
        for group in self.param_groups:
            if not group["matrices"]:
                continue
            rule = tuple(group[name] for name in _RULE)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                rows, columns = parameter.shape[0] // group["matrices"], parameter.shape[1]
                key = (min(rows, columns), max(rows, columns), parameter.dtype, parameter.device, rule)
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                entry = (parameter, self.state[parameter], group["matrices"], rate)
                stacks.setdefault(key, []).append(entry)
        for (short, long, _, _, rule), entries in stacks.items():
            for part in _parts(entries, max(1, _STACK // (short * long))):
                yield part, rule

    def _adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        first, second = group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        gradients = [_own(parameter.grad) for parameter in parameters]
        steps, squares = [state["step"] for state in states], [_own(state["square"]) for state in states]
        directions = _directions(gradients, [_own(state["momentum"]) for state in states], steps, first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        roots = torch._foreach_div(squares, [1 - second**step for step in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_([_own(parameter) for parameter in parameters], directions, roots, -group["lr"])


def _own(value: Tensor) -> Tensor:
    """The part of a shared-out tensor that this process holds; any other tensor whole."""
    return value.to_local() if isinstance(value, DTensor) else value


def _parts(entries: list[tuple], most: int) -> Iterator[list[tuple]]:
    """Entries in their order, as many at once as hold ``most`` matrices together, but at least one."""
    part: list[tuple] = []
    for entry in entries:
        if part and sum(matrices for _, _, matrices, _ in part) + entry[2] > most:
            yield part
            part = []
        part.append(entry)
    yield part


def _directions(gradients: Sequence[Tensor], means: Sequence[Tensor], steps: Sequence[int], momentum: float) -> list:
    """Add the gradients to their means; returns the mix of both as of one step ahead, each corrected for its bias."""
    torch._foreach_lerp_(means, gradients, 1 - momentum)
    directions = torch._foreach_mul(means, [momentum / (1 - momentum ** (step + 1)) for step in steps])
    present = torch._foreach_mul(gradients, [(1 - momentum) / (1 - momentum**step) for step in steps])
    torch._foreach_add_(directions, present)
    return directions


def _move(entries: list[tuple], momentum: float, eps: float, steps: int, precision: Precision) -> None:
    """Update (parameter, state, matrices, rate) entries whose matrices are of one shape or its transpose."""
    parameters, states, counts, rates = zip(*entries, strict=True)
    gradients, means = [_own(value.grad) for value in parameters], [_own(state["momentum"]) for state in states]
    directions = _directions(gradients, means, [state["step"] for state in states], momentum)
    stack = torch.cat([
        _wide(_whole(direction, parameter).unflatten(0, (count, -1)))
        for direction, parameter, count in zip(directions, parameters, counts, strict=True)
    ])  # fmt: skip
    del directions
    changes = _orthogonalize_together(stack, eps, steps, precision).split(counts)
    for parameter, change, rate in zip(parameters, changes, rates, strict=True):
        rows = parameter.shape[0] // len(change)
        upright = change if change.shape[1] == rows else change.mT
        _own(parameter).add_(_own(divided_like(upright.flatten(0, 1), parameter)), alpha=-rate)


def _whole(part: Tensor, parameter: Tensor) -> Tensor:
    """A tensor shared out as a parameter is, whole; collective."""
    if not isinstance(parameter, DTensor):
        return part
    shared_out = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return shared_out.full_tensor()


def _orthogonalize_together(stack: Tensor, eps: float, steps: int, precision: Precision) -> Tensor:
    """:func:`orthogonalize` of equal stacks in all processes, each of which works on its share with its neighbours."""
    precision = "float32" if stack.device.type == "cpu" else precision
    rank, processes = get_dist_info()
    sharers = _sharers(processes)
    if sharers == 1:
        return orthogonalize(stack, eps, steps, precision)
    count, place = _most(len(stack), sharers), rank % sharers
    share = stack.new_zeros(count, *stack.shape[1:])
    own = stack[place * count : (place + 1) * count]
    share[: len(own)] = own
    whole = stack.new_empty(sharers * count, *stack.shape[1:])
    group = None if sharers == processes else _neighbours(sharers, torch.distributed.group.WORLD)
    torch.distributed.all_gather_into_tensor(whole, orthogonalize(share, eps, steps, precision), group=group)
    return whole[: len(stack)]


def _sharers(processes: int) -> int:
    """How many neighbours share: those of a node as a rule, between which to gather is quick (docs/scaling.md)."""
    return max(count for count in range(1, _SHARERS + 1) if processes % count == 0)


@cache
def _neighbours(sharers: int, _: Any) -> Any:
    """The group of this process's neighbours in a group of all; the first call is collective."""
    return torch.distributed.new_subgroups(sharers)[0]


def _most(matrices: int, processes: int) -> int:
    """The matrices of a process that has most of them."""
    return -(-matrices // processes)


def _wide(matrices: Tensor) -> Tensor:
    """(N, rows, columns) matrices, or their transposes if they have more rows than columns."""
    return matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT


def orthogonalize(matrices: Tensor, eps: float = 1e-8, steps: int = 5, precision: Precision = "float32") -> Tensor:
    """(N, rows, columns) matrices, rows <= columns, to about orthogonal ones by Newton-Schulz (docs/pmf.md, P12)."""
    first, second, third = _QUINTIC
    x = (matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + eps)).to(getattr(torch, precision))
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.to(matrices.dtype)
