"""Multiply-adds and parameters of generators and encoders, counted operator by operator on a trace (fvcore).

One multiply-add counts as one, the convention of the papers' "FLOPs". An operator that nobody has said how
to count is an error, so a total never leaves out work silently.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from genflow.analysis.operators import Handle, UncountedOperatorError, known_handles, no_work
from genflow.analysis.tracing import ready_for_tracing
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.errors import reason
from genflow.feature_encoders.base import FeatureEncoder
from genflow.generators.base import Generator

_registered: dict[str, Handle | None] = {}


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
        handle: maps the operator's inputs and outputs, whose shapes :func:`~genflow.analysis.operators.sizes` gives,
            to multiply-adds; None declares that the operator carries none.
    """
    _registered[name] = handle


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
    with ready_for_tracing(module, on_meta):
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
    """All handles; fvcore's own are left where there is no other."""
    registered = {name: handle or no_work for name, handle in _registered.items()}
    return {name: _explained(name, handle) for name, handle in (known_handles() | registered).items()}


def _explained(name: str, handle: Handle) -> Handle:
    """The handle, whose failure names the operator."""

    def count(inputs: list[Any], outputs: list[Any]) -> Any:
        try:
            return handle(inputs, outputs)
        except UncountedOperatorError:
            raise
        except Exception as error:  # a form of the operator that its handle does not foresee
            raise UncountedOperatorError(f"cannot count this form of {name}: {reason(error)}") from error

    return count


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


def _device(*modules: nn.Module) -> torch.device:
    """The device of the modules' first tensor; meta if they hold none."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("meta"))


def _parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())
