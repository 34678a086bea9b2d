"""Muon for matrices, with the Adam beside it that the published code of pMF uses (docs/pmf.md, P12)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genflow.ranges import Betas, DepthOrNone, Share, Size
from genflow.registry import OPTIMIZERS

#: Coefficients of the quintic Newton-Schulz iteration.
_QUINTIC = (3.4445, -4.7750, 2.0315)
#: Numbers in one stack of matrices that are orthogonalised together; bounds the memory on top.
_STACK = 2**25
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
        newton_schulz_precision: of its products.

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
        """One update of the parameters that have gradients."""
        stacks: dict[tuple, list[tuple]] = {}
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
                continue
            rule = tuple(group[name] for name in _RULE)
            for parameter in parameters:
                state = self.state[parameter]
                joint = (parameter, parameter.grad, state["momentum"])
                for matrix in zip(*(tensor.unflatten(0, (group["matrices"], -1)) for tensor in joint), strict=True):
                    rows, columns = matrix[0].shape
                    key = (min(rows, columns), max(rows, columns), parameter.dtype, parameter.device, rule)
                    rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                    stacks.setdefault(key, []).append((*matrix, state["step"], rate))
        for (short, long, _, _, rule), entries in stacks.items():
            count = max(1, _STACK // (short * long))
            for first in range(0, len(entries), count):
                _move(entries[first : first + count], *rule)

    def _adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        first, second = group["betas"]
        gradients = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        steps, squares = [state["step"] for state in states], [state["square"] for state in states]
        directions = _directions(gradients, [state["momentum"] for state in states], steps, first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        roots = torch._foreach_div(squares, [1 - second**step for step in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, directions, roots, -group["lr"])


def _directions(gradients: Sequence[Tensor], means: Sequence[Tensor], steps: Sequence[int], momentum: float) -> list:
    """Add the gradients to their means; returns the mix of both as of one step ahead, each corrected for its bias."""
    torch._foreach_lerp_(means, gradients, 1 - momentum)
    directions = torch._foreach_mul(means, [momentum / (1 - momentum ** (step + 1)) for step in steps])
    present = torch._foreach_mul(gradients, [(1 - momentum) / (1 - momentum**step) for step in steps])
    torch._foreach_add_(directions, present)
    return directions


def _move(entries: list[tuple], momentum: float, eps: float, steps: int, precision: Precision) -> None:
    """Update (matrix, gradient, mean, step, rate) entries whose matrices are of one shape or its transpose."""
    matrices, gradients, means, counts, rates = zip(*entries, strict=True)
    directions = _directions(gradients, means, counts, momentum)
    stack = torch.stack([_wide(direction) for direction in directions])
    del directions
    for matrix, change, rate in zip(matrices, orthogonalize(stack, eps, steps, precision), rates, strict=True):
        _wide(matrix).add_(change, alpha=-rate)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose if it has more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def orthogonalize(matrices: Tensor, eps: float = 1e-8, steps: int = 5, precision: Precision = "float32") -> Tensor:
    """(N, rows, columns) matrices, rows <= columns, to about orthogonal ones by Newton-Schulz (docs/pmf.md, P12)."""
    first, second, third = _QUINTIC
    x = (matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + eps)).to(getattr(torch, precision))
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.to(matrices.dtype)
