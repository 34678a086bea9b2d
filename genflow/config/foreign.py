"""Ranges for the arguments of torch's optimizers, mmengine's schedulers and mmcv's transforms, which state none."""

from typing import Annotated, Any

from genflow.config.arguments import Argument
from genflow.data.pipeline import TransformSlot
from genflow.ranges import Above0, Ascending, Betas, Length, NotNegative, Positive, Power, Range, Share, Size

_Pair = Annotated[tuple[Size, Size], Ascending()]

#: By the argument's name, in all of their classes; an argument may be null besides if that is its default.
_RANGES: dict[str, Any] = {
    # optimizers
    "lr": Size,
    "betas": Betas,
    "eps": Size | tuple[Size | None, Size],
    "weight_decay": Size,
    "momentum": Annotated[float, Range(low=0, below=1)],
    "dampening": Share,
    "rho": Share,
    "alpha": Share,
    "lambd": Size,
    "t0": Size,
    "etas": _Pair,
    "step_sizes": _Pair,
    "lr_decay": Size,
    "momentum_decay": Size,
    "initial_accumulator_value": Size,
    "beta2_decay": Annotated[float, Range(high=0)],
    "d": Above0,
    # schedulers
    "begin": NotNegative,
    "end": Positive,
    "factor": Size,
    "start_factor": Above0,
    "end_factor": Size,
    "gamma": Size,
    "milestones": Annotated[list[NotNegative], Length(), Ascending()],
    "step_size": Positive,
    "T_max": Positive,
    "eta_min": Size,
    "eta_max": Size,
    "eta_min_ratio": Share,
    "power": Power,
    "total_steps": Positive,
    "pct_start": Share,
    "div_factor": Above0,
    "final_div_factor": Above0,
    "periods": Annotated[list[Positive], Length()],
    "restart_weights": Annotated[list[Size], Length()],
    "patience": NotNegative,
    "cooldown": NotNegative,
    "threshold": Size,
    "min_value": Size,
    "last_step": Annotated[int, Range(low=-1, high=-1)],
}


#: As above, for mmcv, whose wrappers hold further transforms.
_OF_TRANSFORMS: dict[str, Any] = {
    "transforms": Annotated[list[TransformSlot | list[TransformSlot]], Length()],
    "prob": Share | Annotated[list[Share], Length()],
}


def with_ranges(cls: type, signature: dict[str, Argument]) -> dict[str, Argument]:
    """The arguments of an optimizer, scheduler or transform that is not GenFlow's, with the ranges of their names."""
    ranges = {"torch": _RANGES, "mmengine": _RANGES, "mmcv": _OF_TRANSFORMS}.get(cls.__module__.split(".")[0], {})
    ranged = {}
    for name, argument in signature.items():
        annotation = ranges.get(name, argument.annotation)
        may_be_null = name in ranges and not argument.required and argument.default is None
        ranged[name] = argument._replace(annotation=annotation | None if may_be_null else annotation)
    return ranged
