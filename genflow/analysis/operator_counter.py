"""Multiply-adds of whatever runs, forward and backward, counted operator by operator as torch dispatches them.

:mod:`genflow.analysis.flops` traces a forward pass, knows norms and refuses what it does not know; a backward pass has
no trace. Here torch's own formulas (``torch.utils.flop_counter``) count matrix products, convolutions and attention,
and all else counts nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from genflow.analysis.scaling import Macs
from genflow.layers.precision import is_full_precision

_REDUCED = (torch.bfloat16, torch.float16)


class OperatorCounter(TorchDispatchMode):
    """Counts what runs within on the meta device.

    The meta device has no autocast, so factors are taken to have the precision that autocast would give them, and those
    of a backward pass that of the forward pass that it belongs to.

    Args:
        autocast: whether products are in reduced precision, outside of
            :func:`~genflow.layers.precision.full_precision`.
    """

    def __init__(self, autocast: bool):
        super().__init__()
        self.autocast = autocast
        self.macs = Macs()
        #: Calls of operators that compute or copy something, views aside.
        self.operators = 0
        self._full_nodes: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        rule = flop_registry.get(func.overloadpacket)
        if rule is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)  # of an operator that is made of others
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if not func.is_view and any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(result)):
            self.operators += 1
        if rule is not None:
            count = rule(*args, **kwargs, out_val=result) // 2  # torch counts a multiply-add as two
            self.macs += Macs(full=count) if self._is_full(args) else Macs(reduced=count)
        return result

    def _is_full(self, args: tuple) -> bool:
        if any(isinstance(leaf, Tensor) and leaf.dtype in _REDUCED for leaf in tree_leaves(args)):
            return False
        node = torch._C._current_autograd_node()
        if node is not None and not torch.is_grad_enabled():  # checkpointing runs forward passes with gradients there
            return not self.autocast or node._sequence_nr() in self._full_nodes
        full = not self.autocast or is_full_precision()
        if full:  # the node of this operator was numbered last
            self._full_nodes.add(torch.autograd._get_sequence_nr() - 1)
        return full
