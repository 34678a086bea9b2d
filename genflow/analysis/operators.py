"""How many multiply-adds traced operators are: what torch's own layers use.

Counted are sums of products, one for each product. Elementwise work, comparisons, copies, and what sums or multiplies
elements alone (pooling, ``mean``, ``cumprod``) count nothing. What else is a convention is said where it is counted.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from genflow.errors import UserError

#: An fvcore handle: lists of the operator's inputs and outputs (``torch._C.Value``) to multiply-adds.
Handle = Callable[[list[Any], list[Any]], Any]

# Operators without multiply-adds, beyond those that fvcore lists itself; each in place as well.
_FREE = (
    # shapes, copies, casts, creation
    "FloatImplicit IntImplicit _autocast_to_full_precision _autocast_to_reduced_precision alias as_strided atleast_1d "
    "atleast_2d atleast_3d bernoulli block_diag broadcast_tensors broadcast_to channel_shuffle clone col2im "
    "column_stack concat concatenate diag diag_embed diagonal dim dsplit dstack empty_like empty_permuted expand_as "
    "eye fft_fftfreq fft_fftshift fft_ifftshift fft_rfftfreq fill_ flip fliplr flipud hann_window hsplit hstack "
    "im2col is_same_size lift lift_fresh linspace logspace mT masked_select meshgrid movedim moveaxis "
    "new_empty_strided new_ones normal numel numpy_T ones_like pad pixel_shuffle pixel_unshuffle rand rand_like "
    "randint randint_like randn randn_like randperm ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat "
    "repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape_as resolve_conj resolve_neg "
    "rot90 scalar_tensor select_scatter slice_scatter swapaxes swapdims tensor_split tile tril tril_indices triu "
    "triu_indices unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes view_as view_as_complex "
    "view_as_real vsplit vstack zero_ "
    # indexing
    "bucketize embedding embedding_bag index_add index_copy index_fill index_put index_reduce index_select "
    "masked_scatter one_hot put scatter scatter_add scatter_reduce searchsorted take take_along_dim "
    # elementwise
    "__or__ __xor__ abs absolute acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and "
    "bitwise_or bitwise_xor ceil clamp_max clamp_min clip complex conj conj_physical copysign cos cosh deg2rad div "
    "divide erf erfc erfinv exp exp2 expm1 float_power fmax fmin fmod frac frexp greater greater_equal heaviside "
    "hypot imag isclose isfinite isinf isnan isneginf isposinf ldexp le lerp less less_equal lgamma log log10 log1p "
    "log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt maximum minimum mul multiply "
    "nan_to_num ne neg negative nextafter not_equal polar positive pow rad2deg real reciprocal round rsqrt rsub sgn "
    "sign signbit sin sinc sinh special_expit sqrt square sub subtract tan tanh threshold true_divide trunc where "
    "xlogy "
    # activations
    "alpha_dropout celu elu feature_alpha_dropout feature_dropout gelu glu hardshrink hardsigmoid hardswish hardtanh "
    "leaky_relu log_sigmoid log_softmax mish prelu relu6 rrelu selu sigmoid silu softmax softplus softshrink "
    # reductions of elements
    "all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum diff kthvalue "
    "logcumsumexp logsumexp mean median min mode msort nanmean nansum prod quantile sort sum topk trace "
    # pooling, whose nearest relatives are means and maxima, and copies to finer grids
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d max_pool1d "
    "max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d "
    "max_unpool3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d "
)


class NotCountedError(UserError):
    """The multiply-adds of a computation cannot be counted; says why."""


class UncountedOperatorError(NotCountedError):
    """A traced operator has no handle and is not known to be free of multiply-adds."""


def sizes(value: Any) -> list[int] | None:
    """The shape of an operator's input or output; None if it is not a tensor."""
    return value.type().sizes() if value.isCompleteTensor() else None


def known_handles() -> dict[str, Handle]:
    """Handles by traced name."""
    handles: dict[str, Handle] = {}
    for name in _FREE.split():
        handles |= {name: no_work, f"{name.removesuffix('_')}_": no_work}
    handles |= dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot", "vdot", "inner"), _product(0))
    handles |= dict.fromkeys(("addmm", "baddbmm", "addmv"), _product(1))
    handles |= dict.fromkeys(("linalg_cross", "outer", "ger"), _per_output(1))
    handles |= dict.fromkeys(
        ("var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "frobenius_norm"), _squares
    )
    handles |= dict.fromkeys(("linalg_vecdot", "pairwise_distance"), _squares)
    handles |= dict.fromkeys(("_convolution", "_convolution_mode"), _convolution)
    handles |= dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent)
    handles |= {f"fft_{name}": _fourier(None) for name in ("fft", "ifft", "fft2", "ifft2", "fftn", "ifftn")}
    handles |= {f"fft_{name}": _fourier("input") for name in ("rfft", "rfft2", "rfftn", "ihfft", "ihfft2", "ihfftn")}
    handles |= {f"fft_{name}": _fourier("output") for name in ("irfft", "irfft2", "irfftn", "hfft", "hfft2", "hfftn")}
    # Neighbours that an output element is a weighted sum of.
    taps = {"linear1d": 2, "bilinear2d": 4, "trilinear3d": 8, "bicubic2d": 16}
    handles |= {f"upsample_{name}": _per_output(count) for name, count in taps.items()}
    handles |= {"_upsample_bilinear2d_aa": _antialiased(2), "_upsample_bicubic2d_aa": _antialiased(4)}
    return {f"aten::{name}": handle for name, handle in handles.items()} | {
        "aten::einsum": _einsum,
        "aten::tensordot": _tensordot,
        "aten::bilinear": _bilinear,
        "aten::scaled_dot_product_attention": _attention,
        "aten::rms_norm": _rms_norm,
        "aten::layer_norm": _norm(2),
        "aten::group_norm": _norm(2),
        "aten::batch_norm": _running_norm,
        "aten::instance_norm": _running_norm,
        "aten::_weight_norm": lambda inputs, outputs: 2 * _count(inputs[0]),  # squares, and the scaling of v
        "aten::norm_except_dim": _squares,
        "aten::cdist": lambda inputs, outputs: _count(outputs[0]) * sizes(inputs[0])[-1],
        "aten::cosine_similarity": lambda inputs, outputs: 3 * _count(inputs[0]),  # a product and two squares
        "aten::affine_grid_generator": lambda inputs, outputs: _count(outputs[0]) * sizes(inputs[0])[-1],
        "aten::grid_sampler": _grid_sampler,
    }


def no_work(inputs: list[Any], outputs: list[Any]) -> int:
    """The handle of an operator without multiply-adds."""
    return 0


def _count(value: Any) -> int:
    return math.prod(sizes(value))


def _entries(value: Any) -> list[Any]:
    """What a list that is made in the trace holds: its inputs."""
    return list(value.node().inputs())


def _numbers(value: Any) -> list[int] | None:
    """An operator's argument that is a number or a list of numbers; None if it is None."""
    if value.node().kind() == "prim::ListConstruct":
        return [entry.toIValue() for entry in _entries(value)]
    found = value.toIValue()
    return [found] if isinstance(found, int) else found


def _product(factor: int) -> Handle:
    """A product that sums over the last axis of input ``factor``, with whatever broadcasting."""
    return lambda inputs, outputs: _count(outputs[0]) * sizes(inputs[factor])[-1]


def _per_output(count: int) -> Handle:
    return lambda inputs, outputs: count * _count(outputs[0])


def _squares(inputs: list[Any], outputs: list[Any]) -> int:
    """One square, or one product of two vectors' entries, to accumulate per element."""
    return max(_count(value) for value in inputs[:2] if sizes(value) is not None)


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Every weight once per batch element and position: of the output, or of the input of a transposed convolution."""
    # Padding in words has another operator, which is never transposed.
    transposed = len(inputs) > 7 and inputs[6].toIValue()
    shape = sizes(inputs[0] if transposed else outputs[0])
    weight = sizes(inputs[1])
    batch = shape[0] if len(shape) == len(weight) else 1
    return Counter(conv=batch * math.prod(shape[2 - len(weight) :]) * math.prod(weight))


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Every matrix once per step of every sequence (packed ones have all steps in one axis); gates are elementwise."""
    steps = math.prod(sizes(inputs[0])[:-1])
    lists = [value for value in inputs if value.node().kind() == "prim::ListConstruct"]
    weights = (sizes(entry) for entry in _entries(lists[-1]))
    return steps * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def _fourier(real: str | None) -> Handle:
    """5/2 N log2 N for a transform of N points: half of the textbook's 5 N log2 N operations, two to a multiply-add.

    A real transform, whose real side (``input`` or ``output``) says what N is, counts half.
    """

    def count(inputs: list[Any], outputs: list[Any]) -> int:
        shape = list(sizes(inputs[0] if real == "input" else outputs[0]))
        lengths, axes = _numbers(inputs[1]), _numbers(inputs[2])
        if axes is None:
            axes = list(range(-len(lengths or shape), 0))
        if real == "input" and lengths is not None:  # cut or padded
            for axis, length in zip(axes, lengths, strict=True):
                shape[axis] = length
        points = math.prod(shape[axis] for axis in axes)
        return round(math.prod(shape) * 2.5 * math.log2(points) * (1 if real is None else 0.5))

    return count


def _antialiased(taps: int) -> Handle:
    """One axis after the other, the width first; a kernel grows with the factor by which it shrinks its axis."""

    def count(inputs: list[Any], outputs: list[Any]) -> int:
        (*batch, height, width), (new_height, new_width) = sizes(inputs[0]), sizes(outputs[0])[-2:]
        across = height * new_width * math.ceil(taps * max(1, width / new_width))
        down = new_height * new_width * math.ceil(taps * max(1, height / new_height))
        return math.prod(batch) * (across + down)

    return count


def _grid_sampler(inputs: list[Any], outputs: list[Any]) -> int:
    """The neighbours of a position in 2 or 3 axes: linear, nearest, cubic."""
    axes = len(sizes(inputs[0])) - 2
    return _count(outputs[0]) * (2**axes, 0, 4**axes)[inputs[2].toIValue()]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """B*H*L*S*d for the logits and for the weighted sum; masked logits count, as the papers have it."""
    query, key, value = (sizes(entry) for entry in inputs[:3])
    return math.prod(sizes(outputs[0])[:-1]) * key[-2] * (query[-1] + value[-1])


def _rms_norm(inputs: list[Any], outputs: list[Any]) -> int:
    """Square and accumulate, scale, and gain where there is one."""
    return _count(inputs[0]) * (2 if sizes(inputs[2]) is None else 3)


def _norm(gain: int) -> Handle:
    """fvcore's convention: 5 per element with gains (input ``gain``), 4 without."""
    return lambda inputs, outputs: _count(inputs[0]) * (4 if sizes(inputs[gain]) is None else 5)


def _running_norm(inputs: list[Any], outputs: list[Any]) -> int:
    """With the input's own statistics as other norms; by running ones 2 per element with gains, 1 without."""
    own_statistics = inputs[5].toIValue()
    return _norm(1)(inputs, outputs) - (0 if own_statistics else 3 * _count(inputs[0]))


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    """The first factor's product with the weights (O, I, J), then the second's."""
    _, first, second = sizes(inputs[2])
    return _count(outputs[0]) * (first * second + second)


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    shape = sizes(inputs[0])
    return _count(outputs[0]) * math.prod(shape[axis] for axis in _numbers(inputs[2]))


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Output elements times the lengths of the indices summed over (fvcore reads a rounded NumPy report)."""
    equation = inputs[0].toIValue().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = [sizes(entry) for entry in _entries(inputs[1])]
    if len(operands) != 2 or "." in equation:
        raise UncountedOperatorError(f"einsum is counted for two operands, no ellipsis; found '{equation}'")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms.split(","), operands, strict=True):
        for index, length in zip(term, shape, strict=True):
            lengths[index] = max(length, lengths.get(index, 1))
    # Without an arrow the indices that occur once remain.
    kept = result if arrow else [index for index in lengths if terms.count(index) == 1]
    summed = math.prod(length for index, length in lengths.items() if index not in kept)
    return _count(outputs[0]) * summed
