"""Muon for matrices, with the Adam beside it that the published code of pMF uses (spec 8)."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genflow.registry import OPTIMIZERS
from genflow.slots import NotNegative, Size

#: Coefficients of the quintic Newton-Schulz iteration.
_QUINTIC = (3.4445, -4.7750, 2.0315)
#: Numbers in one stack of matrices that are orthogonalised together; bounds the memory on top.
_STACK = 2**26

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
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Size = 1e-3,
        momentum: Size = 0.95,
        betas: tuple[Size, Size] = (0.9, 0.95),
        eps: Size = 1e-8,
        newton_schulz_steps: NotNegative = 5,
        newton_schulz_precision: Precision = "float32",
    ):
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

    @staticmethod
    def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
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
    def step(self, closure: None = None) -> None:
        """One update of the parameters that have gradients."""
        stacks: dict[tuple, list[tuple[Tensor, Tensor, float]]] = {}
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
            for parameter in parameters:
                direction = self._direction(parameter, group["momentum"])
                rule = (group["eps"], group["newton_schulz_steps"], group["newton_schulz_precision"])
                for matrix, target in zip(
                    direction.chunk(group["matrices"]), parameter.chunk(group["matrices"]), strict=True
                ):
                    rows, columns = matrix.shape
                    rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                    key = (min(rows, columns), max(rows, columns), matrix.dtype, matrix.device, *rule)
                    stacks.setdefault(key, []).append((matrix, target, rate))
        for (short, long, _, _, *rule), entries in stacks.items():
            count = max(1, _STACK // (short * long))
            for first in range(0, len(entries), count):
                _update(entries[first : first + count], *rule)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """The mix of momentum and gradient: m after this gradient, looked at one step ahead."""
        state = self.state[parameter]
        mean, step = state["momentum"].lerp_(parameter.grad, 1 - momentum), state["step"]
        share = momentum / (1 - momentum ** (step + 1))
        return share * mean + (1 - momentum) / (1 - momentum**step) * parameter.grad

    def _adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        first, second = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            direction = self._direction(parameter, first)
            square = state["square"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            root = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
            parameter.addcdiv_(direction, root, value=-group["lr"])


def _update(entries: list[tuple[Tensor, Tensor, float]], eps: float, steps: int, precision: Precision) -> None:
    """Move (matrix, parameter, rate) entries whose matrices are of one shape or its transpose."""
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix, _, _ in entries]
    orthogonal = orthogonalize(torch.stack(wide), eps, steps, precision)
    for result, (matrix, target, rate) in zip(orthogonal, entries, strict=True):
        target.add_(result if matrix.shape[0] <= matrix.shape[1] else result.mT, alpha=-rate)


def orthogonalize(matrices: Tensor, eps: float = 1e-8, steps: int = 5, precision: Precision = "float32") -> Tensor:
    """(N, rows, columns) matrices, rows <= columns, to about orthogonal ones by Newton-Schulz (spec 8.2)."""
    first, second, third = _QUINTIC
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + eps)
    x = x.to(getattr(torch, precision))
    for _ in range(steps):
        gram = x @ x.mT
        x = first * x + torch.baddbmm(gram, gram, gram, beta=second, alpha=third) @ x
    return x.to(matrices.dtype)
