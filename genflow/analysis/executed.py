"""Multiply-adds that a computation executes, counted operator by operator while it runs, backward passes included.

:mod:`genflow.analysis.flops` counts a generator on a trace, without running it. A training step cannot be traced: here
every operator that torch dispatches is seen as it runs, those of a backward pass, of a forward-mode derivative and of
an optimizer among them.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators without a rule whose names look like products; the others are norms, sums, copies and the like.
_PRODUCT = re.compile(
    r"_*(\w*mm|\w*mv|v?dot|\w*conv\w*|\w*attention\w*|matmul|linear|einsum|\w*dist)(_forward|_backward)?"
)


class ExecutedMacs(TorchDispatchMode):
    """Counts the multiply-adds of matrix products, convolutions and attention, one multiply-add as one.

    What is counted is what is executed: activations that are computed again count again, so do the scores that a
    fused attention forms anew in its backward pass, and a masked attention counts whole. Elementwise operators, norms
    and sums are not counted, nor are kernels that are no operators of torch. Compiled functions are not seen into.

    Attributes:
        total: multiply-adds so far.
        uncounted: operators that look like products and have no rule here, so that ``total`` is too small.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        packet = getattr(function, "overloadpacket", function)
        if any(isinstance(value, Tensor) and value._is_zerotensor() for value in arguments):
            return result  # a tangent that is known to be zero: torch multiplies nothing
        if packet in _RULES:
            self.total += _RULES[packet](result, *arguments)
        elif _PRODUCT.fullmatch(packet.__name__):
            self.uncounted.add(packet.__name__)
        return result


def _product(_: Tensor, left: Tensor, right: Tensor, *__: Any) -> int:
    return left.numel() * right.shape[-1]


def _added_product(_: Tensor, __: Tensor, left: Tensor, right: Tensor, *___: Any) -> int:
    return left.numel() * right.shape[-1]


def _of_first(_: Tensor, left: Tensor, *__: Any) -> int:
    """With a vector."""
    return left.numel()


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """A kernel of the channels of a group is laid on every position of one side."""
    transposed = rest[4]
    return (x if transposed else out).numel() * weight[0].numel()


def _convolution_backward(_: Any, slope: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """As much as the forward pass for each of the gradients of data and weights that is wanted."""
    transposed, wanted = rest[4], rest[7]
    return (x if transposed else slope).numel() * weight[0].numel() * sum(wanted[:2])


def _attention(_: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any) -> int:
    """(B, H, L, E) queries, (B, H, S, E) keys, (B, H, S, D) values."""
    return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(_: Any, __: Tensor, query: Tensor, key: Tensor, value: Tensor, *___: Any) -> int:
    """Scores once more, and the gradients of scores, queries, keys and values."""
    return query.shape[:-1].numel() * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _rules() -> dict[Any, Callable[..., int]]:
    named: dict[str, Callable[..., int]] = {
        "mm": _product,
        "bmm": _product,
        "addmm": _added_product,
        "baddbmm": _added_product,
        "mv": _of_first,
        "dot": _of_first,
        "convolution": _convolution,
        "convolution_backward": _convolution_backward,
    }
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
        named[f"_scaled_dot_product_{kind}"] = _attention
        named[f"_scaled_dot_product_{kind}_backward"] = _attention_backward
    return {getattr(torch.ops.aten, name): rule for name, rule in named.items() if hasattr(torch.ops.aten, name)}


_RULES = _rules()
