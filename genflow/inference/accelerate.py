"""Faster generators, at the price of exactness."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genflow.errors import UserError, reason
from genflow.generators.base import Generator
from genflow.generators.flow import FlowGenerator
from genflow.generators.reverse import OnePassGenerator
from genflow.generators.velocity import VelocityGenerator

Precision = Literal["float32", "bfloat16"]


def accelerate(
    generator: Generator,
    precision: Precision = "float32",
    compile: bool = False,
    decode_precision: Precision = "float32",
) -> Generator:
    """Make a generator that lies on its device faster, in place, at the price of exactness.

    Noise and samples stay float32. So do buffers, such as rotary angles, a flow's affine maps (spec 1.10), and the
    score step after a backbone.

    Args:
        generator: one pass or more through a backbone, or a flow.
        precision: what the network's weights are cast to, and its products are computed in.
        compile: a backbone is compiled with torch.compile, once per batch size, while the first batch waits; on a
            GPU as CUDA graphs. The inverse of a TARFlow is recorded as CUDA graphs, again once per batch size, on
            a GPU only. What concerns the GPU has not been measured on one.
        decode_precision: the same as ``precision`` for the codec.

    Raises:
        UserError: the generator is of another sort, or does not compile; torch.compile fails only when a compiled
            generator is first called.
    """
    one_pass = isinstance(generator, OnePassGenerator)
    known = (OnePassGenerator, VelocityGenerator, FlowGenerator)
    if (compile or precision != "float32") and not isinstance(generator, known):
        raise UserError(f"--precision and --compile: a {type(generator).__name__} has no fast form")
    if precision != "float32":
        _cast(generator.network, precision)
        if one_pass:  # a flow takes float32 tokens and casts them where it may
            generator.counted = _in_precision(generator.counted, precision)
        elif isinstance(generator, VelocityGenerator):
            generator.network.forward = _outputs_in_precision(generator.network.forward, precision)
    if compile and one_pass:
        generator.counted = _compiled(generator.counted, next(generator.network.parameters()).device)
    elif compile and isinstance(generator, VelocityGenerator):
        generator.velocity = _compiled(generator.velocity, next(generator.network.parameters()).device)
    elif compile:
        if not hasattr(generator.network, "capture"):
            raise UserError(f"--compile: the inverse of a {type(generator.network).__name__} cannot be compiled")
        generator.network.capture()
    if decode_precision != "float32":
        _cast(generator.codec, decode_precision)
        generator.codec.decode = _in_precision(generator.codec.decode, decode_precision)
    return generator


def _cast(module: nn.Module, precision: Precision) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.to(getattr(torch, precision))


def _in_precision(function: Callable[..., Tensor], precision: Precision) -> Callable[..., Tensor]:
    """``function`` with its first argument cast, and float32 results."""
    return lambda first, *others: function(first.to(getattr(torch, precision)), *others).float()


def _outputs_in_precision(function: Callable[..., dict[str, Tensor]], precision: Precision) -> Callable:
    """As :func:`_in_precision`, for the outputs of a backbone's heads."""
    return lambda first, *others: {
        name: output.float() for name, output in function(first.to(getattr(torch, precision)), *others).items()
    }


def _compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    compiled = torch.compile(function, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)

    def call(*inputs: Any) -> Tensor:
        try:
            return compiled(*inputs).clone()  # the next replay of a CUDA graph overwrites its output
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(f"--compile: torch.compile failed: {reason(error)}") from error

    return call
