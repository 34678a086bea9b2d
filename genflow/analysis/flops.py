"""Multiply-adds and parameters of generators and encoders, counted operator by operator on a trace (fvcore).

One multiply-add counts as one, the convention of the papers' "FLOPs". An operator that nobody has said how
to count is an error, so a total never leaves out work silently.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from genflow.condition import Condition
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.feature_encoders.base import FeatureEncoder
from genflow.generators.base import Generator

#: An fvcore handle: lists of the operator's inputs and outputs (``torch._C.Value``) to multiply-adds.
Handle = Callable[[list[Any], list[Any]], Any]

# Operators without matrix work, beyond those that fvcore lists itself; each in place as well.
_NO_MATRIX_WORK = (
    # shapes, copies, casts, creation
    "FloatImplicit IntImplicit _autocast_to_full_precision _autocast_to_reduced_precision alias "
    "as_strided bernoulli broadcast_tensors broadcast_to clone concat concatenate diagonal dim empty_like "
    "expand_as eye fill_ flip lift_fresh linspace mT masked_select meshgrid movedim new_ones normal numel "
    "numpy_T ones_like pad pixel_shuffle pixel_unshuffle rand rand_like randn randn_like ravel "
    "reflection_pad2d repeat repeat_interleave replication_pad2d reshape_as scalar_tensor swapaxes "
    "tensor_split tile tril triu unflatten unfold upsample_nearest2d view_as view_as_complex view_as_real "
    "zero_ "
    # indexing
    "bucketize embedding index_copy index_put index_select masked_scatter one_hot scatter searchsorted "
    "take take_along_dim "
    # elementwise
    "__or__ abs acos add addcdiv addcmul asin atan atan2 bitwise_and bitwise_or ceil clamp_max clamp_min "
    "complex conj cos cosh div erf exp exp2 expm1 fmod imag isfinite isinf isnan le lerp log log10 log1p "
    "log2 logical_and logical_not logical_or logical_xor lt maximum minimum mul nan_to_num ne neg polar "
    "pow real reciprocal round rsqrt rsub sign sin sinh sqrt square sub tan tanh true_divide trunc where "
    "xlogy "
    # activations
    "elu feature_dropout gelu glu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax mish "
    "prelu relu6 selu sigmoid silu softmax softplus "
    # reductions without products
    "all amax amin any argmax argmin argsort avg_pool2d cumsum logsumexp mean min sort sum topk"
)

_registered: dict[str, Handle | None] = {}


class UncountedOperatorError(UserError):
    """A traced operator has no handle and is not known to be free of matrix work."""


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of one computation.

    Args:
        total: all of them.
        by_module: those of every submodule that has any, by its path; a module includes its children.
        by_operator: those of every kind of operator, e.g. ``linear``.
    """

    total: int
    by_module: dict[str, int]
    by_operator: dict[str, int]


@dataclass(frozen=True)
class GeneratorCost:
    """What one image costs; multiply-adds are for batch 1.

    Args:
        generator_params: parameters of the generator's network, or of a feature encoder in its place.
        generator_macs: multiply-adds of ``Generator.evaluate``, without decoding, or of the encoder's features.
        decoder_params: parameters of the modules that decode; 0 in pixel space.
        decoder_macs: multiply-adds of ``Codec.decode``.
        nfe: sequential evaluations of the network.
        by_component: as ``MacCount.by_module``, e.g. ``network.flow_blocks.0``; decoding is ``codec``.
    """

    generator_params: int
    generator_macs: int
    decoder_params: int
    decoder_macs: int
    nfe: int
    by_component: dict[str, int]


def register_handle(name: str, handle: Handle | None) -> None:
    """Say how an operator is counted; replaces what was known about it.

    Args:
        name: the traced name, ``aten::cdist``, ``my_library::kernel`` or ``prim::PythonOp.MyFunction``.
        handle: maps the operator's inputs and outputs to multiply-adds (:func:`sizes` gives their shapes);
            None declares that the operator carries no matrix work.
    """
    _registered[name] = handle


def sizes(value: Any) -> list[int] | None:
    """The shape of an operator's input or output; None if it is not a tensor."""
    return value.type().sizes() if value.isCompleteTensor() else None


def count_macs(
    module: nn.Module, inputs: tuple[Tensor, ...], function: Callable[..., Tensor] | None = None
) -> MacCount:
    """Count the multiply-adds of a computation by tracing it once, in evaluation mode and without gradients.

    Work that the output does not depend on is not counted. On the meta device nothing is computed.

    Args:
        module: the modules at work; they name the rows of ``by_module``.
        inputs: the tensors that ``function`` takes, on the module's device.
        function: the computation; None calls ``module``.

    Raises:
        UncountedOperatorError: an operator without a handle; names it and the modules that use it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts functions while it is imported
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(_Traced(module, function or module), inputs)
    analysis.set_op_handle(**_handles()).tracer_warnings("none")
    # Our own error takes the place of fvcore's warnings.
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    on_meta = any(tensor.is_meta for tensor in inputs)
    with _evaluation_mode(module), torch.no_grad(), _ConvolutionOnMeta() if on_meta else nullcontext():
        counts = analysis.by_module()
    _refuse_uncounted({name: analysis.unsupported_ops(name) for name in counts})
    paths = {name: name.removeprefix("target").removeprefix(".") for name in counts}
    return MacCount(
        total=int(counts[""]),
        by_module={paths[name]: int(macs) for name, macs in counts.items() if macs and paths[name]},
        by_operator={name: int(macs) for name, macs in analysis.by_operator().items() if macs},
    )


def count_generator(generator: Generator) -> GeneratorCost:
    """Count one image of a generator and its decoding; quick and without memory on the meta device.

    A codec names in ``decoder_modules`` what its ``decode`` runs; one without this attribute counts whole.

    Raises:
        UncountedOperatorError: as in :func:`count_macs`.
    """

    label = torch.zeros(1, dtype=torch.int64, device=_device(generator.network))
    noise, condition = generator.draw(Draws(0, label), label)
    given = {field.name: getattr(condition, field.name) for field in fields(condition)}
    given = {name: value for name, value in given.items() if value is not None}

    def evaluate(noise: Tensor, *values: Tensor) -> Tensor:
        # Tracing takes tensors only, so the Condition is put together inside.
        return generator.evaluate(noise, Condition(**dict(zip(given, values, strict=True))))

    network = count_macs(generator, (noise, *given.values()), evaluate)
    codec = generator.codec
    decoders: tuple[nn.Module, ...] = getattr(codec, "decoder_modules", (codec,))
    samples = torch.zeros(1, *codec.latent_shape, device=_device(*decoders))
    decoder = count_macs(codec, (samples,), codec.decode)
    decoder_parts = {f"codec.{name}": macs for name, macs in decoder.by_module.items()}
    return GeneratorCost(
        generator_params=_parameters(generator.network),
        generator_macs=network.total,
        decoder_params=_parameters(*decoders),
        decoder_macs=decoder.total,
        nfe=generator.nfe,
        by_component=network.by_module | ({"codec": decoder.total} if decoder.total else {}) | decoder_parts,
    )


def count_encoder(encoder: FeatureEncoder, image_shape: tuple[int, int, int]) -> GeneratorCost:
    """Count the features of one image, or sample, of shape (C, H, W).

    Raises:
        UncountedOperatorError: as in :func:`count_macs`.
    """
    image = torch.zeros(1, *image_shape, device=_device(encoder))
    features = count_macs(encoder, (image,), lambda x: tuple(encoder(x).values()))
    return GeneratorCost(_parameters(encoder), features.total, 0, 0, nfe=1, by_component=features.by_module)


class _Traced(nn.Module):
    """Makes a function that works with a module a module itself; fvcore's names get the prefix ``target``."""

    def __init__(self, target: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.target = target
        # Within a tuple a module is not registered again under a second name.
        self.function = (function,)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function[0](*tensors)


def _handles() -> dict[str, Handle]:
    """Handles beyond fvcore's own for convolutions, layer, group and batch norms; the latest entry wins."""
    handles: dict[str, Handle | None] = {}
    for name in _NO_MATRIX_WORK.split():
        handles |= {f"aten::{name}": None, f"aten::{name.removesuffix('_')}_": None}
    handles |= {f"aten::{name}": _product(0) for name in ("linear", "matmul", "mm", "bmm", "mv", "dot")}
    handles |= {f"aten::{name}": _product(1) for name in ("addmm", "baddbmm")}
    handles |= {f"aten::{name}": _squares for name in ("var", "std", "var_mean", "linalg_vector_norm")}
    handles["aten::einsum"] = _einsum
    handles["aten::scaled_dot_product_attention"] = _attention
    handles["aten::rms_norm"] = _rms_norm
    return {name: handle or _nothing for name, handle in (handles | _registered).items()}


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _product(factor: int) -> Handle:
    """A product that sums over the last axis of input ``factor``, with whatever broadcasting."""
    return lambda inputs, outputs: math.prod(sizes(outputs[0])) * sizes(inputs[factor])[-1]


def _squares(inputs: list[Any], outputs: list[Any]) -> int:
    """One square to accumulate per element."""
    return math.prod(sizes(inputs[0]))


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """B*H*L*S*d for the logits and for the weighted sum; masked logits count, as the papers have it."""
    query, key, value = (sizes(entry) for entry in inputs[:3])
    return math.prod(sizes(outputs[0])[:-1]) * key[-2] * (query[-1] + value[-1])


def _rms_norm(inputs: list[Any], outputs: list[Any]) -> int:
    """Square and accumulate, scale, and gain where there is one."""
    return math.prod(sizes(inputs[0])) * (2 if sizes(inputs[2]) is None else 3)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Output elements times the lengths of the indices summed over (fvcore reads a rounded NumPy report)."""
    equation = inputs[0].toIValue().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = [sizes(entry) for entry in inputs[1].node().inputs()]
    if len(operands) != 2 or "." in equation:
        raise UncountedOperatorError(f"einsum is counted for two operands, no ellipsis; found '{equation}'")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms.split(","), operands, strict=True):
        for index, length in zip(term, shape, strict=True):
            lengths[index] = max(length, lengths.get(index, 1))
    # Without an arrow the indices that occur once remain.
    kept = result if arrow else [index for index in lengths if terms.count(index) == 1]
    summed = math.prod(length for index, length in lengths.items() if index not in kept)
    return math.prod(sizes(outputs[0])) * summed


def _refuse_uncounted(unsupported: dict[str, dict[str, int]]) -> None:
    """Raise for operators without a handle, given as ``{traced module path: {operator: times}}``."""
    places: dict[str, list[str]] = {}
    for path, operators in unsupported.items():
        for operator in operators:
            places.setdefault(operator, []).append(path)
    found = []
    for operator, paths in sorted(places.items()):
        # An operator is listed for every ancestor of its module too; name the innermost only.
        inner = [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]
        named = [path.removeprefix("target.") for path in inner if path not in ("", "target")]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        found.append(f"{operator} in {', '.join(named[:3]) or 'the function itself'}{more}")
    if found:
        raise UncountedOperatorError(
            f"do not know the multiply-adds of {'; '.join(found)}: register a handle with "
            f"genflow.analysis.flops.register_handle('{min(places)}', function)"
        )


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


class _ConvolutionOnMeta(TorchFunctionMode):
    """Calls convolutions by the operator that a trace records, which the meta device would pass over."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (functional.conv1d, functional.conv2d, functional.conv3d):
            return _convolution(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """The arguments of ``functional.conv2d``; padding in words is not supported."""
    axes = weight.dim() - 2
    per_axis = [(value,) * axes if isinstance(value, int) else value for value in (stride, padding, dilation)]
    backend = (False,) * 4  # choices among kernels, without a meaning on the meta device
    return torch._convolution(input, weight, bias, *per_axis, False, (0,) * axes, groups, *backend)


def _device(*modules: nn.Module) -> torch.device:
    """The device of the modules' first tensor; meta if they hold none."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("meta"))


def _parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())
