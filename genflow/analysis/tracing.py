"""What stands around a trace: evaluation mode, operators that the meta device would pass over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def ready_for_tracing(module: nn.Module, on_meta: bool) -> Iterator[None]:
    """Trace ``module``, which is restored, without a graph; ``on_meta``: its tensors are on the meta device."""
    with _evaluation_mode(module), torch.no_grad(), _no_fast_attention(), _on_meta() if on_meta else nullcontext():
        yield


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; every submodule gets its own mode back."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def _no_fast_attention() -> Iterator[None]:
    """Let torch's own attention layer run operator by operator on every device."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _on_meta() -> Iterator[None]:
    """What a trace on the meta device needs; tensors that name no device are made there too."""
    with torch.device("meta"), _ConvolutionOnMeta():
        yield


class _ConvolutionOnMeta(TorchFunctionMode):
    """Calls convolutions by the operator that a trace records, which the meta device would pass over."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (functional.conv1d, functional.conv2d, functional.conv3d):
            return _convolution(function, *args, **kwargs)
        if function in (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d):
            return _transposed_convolution(*args, **kwargs)
        return function(*args, **kwargs)


def _convolution(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """The arguments of ``functional.conv2d``, which is recorded as it is where padding is a word."""
    if isinstance(padding, str):
        return function(input, weight, bias, stride, padding, dilation, groups)
    return _recorded(input, weight, bias, (stride, padding, dilation), False, 0, groups)


def _transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor:
    """The arguments of ``functional.conv_transpose2d``."""
    return _recorded(input, weight, bias, (stride, padding, dilation), True, output_padding, groups)


def _recorded(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steps: tuple[int | tuple[int, ...], ...],
    transposed: bool,
    output_padding: int | tuple[int, ...],
    groups: int,
) -> Tensor:
    """A convolution of a batch, or of one element of it, with (stride, padding, dilation)."""
    axes = weight.dim() - 2
    if input.dim() == axes + 1:
        return _recorded(input.unsqueeze(0), weight, bias, steps, transposed, output_padding, groups).squeeze(0)
    # Plain numbers: a trace makes tensors of sizes, with which the meta device cannot compute shapes.
    *per_axis, output_padding = (
        (int(value),) * axes if isinstance(value, int | Tensor) else tuple(map(int, value))
        for value in (*steps, output_padding)
    )
    backend = (False,) * 4  # choices among kernels, without a meaning on the meta device
    return torch._convolution(input, weight, bias, *per_axis, transposed, output_padding, groups, *backend)
