"""BiFlow's ablation on digits: what the paper compares on ImageNet, and what it leaves open (docs/biflow.md)."""

from functools import partial

from genflow.reproduction.ablation import EXACT_INVERSE, Ablation, Row

_BASE = "biflow_digits"
_row = partial(Row, teacher="itarflow_digits")
_TEACHER = {"itarflow_digits": ("itarflow_digits", ())}
#: About two minutes a run on one core.
_SHORT = ("train_cfg.max_iters=800",)
_TEACHER_UPDATES = 1000

PAPER_ROWS = Ablation(
    name="table",
    rows=(
        _row("reverse", EXACT_INVERSE, "itarflow_digits", paper=44.46),
        _row("reverse", "naive distillation", f"{_BASE}_naive", paper=43.41),
        _row("reverse", "hidden distillation", f"{_BASE}_hidden_distillation", paper=55.00),
        _row("reverse", "hidden alignment", _BASE, paper=36.93),
        _row("denoising", "none", f"{_BASE}_no_denoise", paper=100.51),
        _row("denoising", "score step", f"{_BASE}_score_denoise", paper=42.62),
        _row("denoising", "learned", _BASE, paper=31.88),
        _row("norm control", "none", f"{_BASE}_no_norm_control", teacher="itarflow_digits_unbounded", paper=45.54),
        _row("norm control", "clip", _BASE, ("model.inverse.trajectory_norm=none",), paper=31.88),
        _row("norm control", "clip and trajectory norm", _BASE),
        _row("distance", "squared error", _BASE, paper=31.88),
        _row("distance", "squared error and features", f"{_BASE}_perceptual", paper=2.46),
        _row("guidance", "two passes", f"{_BASE}_two_pass_guidance"),
        _row("guidance", "learned in training", _BASE),
        _row("guidance", "two passes", f"{_BASE}_two_pass_guidance", guidance=0.5, paper=6.90),
        _row("guidance", "learned in training", _BASE, guidance=0.5, paper=6.79),
        _row("guidance", "two passes", f"{_BASE}_two_pass_guidance", guidance=1.0),
        _row("guidance", "learned in training", _BASE, guidance=1.0),
    ),
    teachers={**_TEACHER, "itarflow_digits_unbounded": ("itarflow_digits", ("model.flow.bound=null",))},
    shared=_SHORT,
    teacher_updates=_TEACHER_UPDATES,
)


def _noise(std: float) -> tuple[str, ...]:
    return (f"model.noise_std={std}",)


OPEN_POINTS = Ablation(
    name="open_points",
    rows=(
        _row("as in biflow_digits", "noise 0.2, clip 3, state norm, linear heads", _BASE),
        *(
            row
            for std in (0.1, 0.3)
            for row in (
                _row("1: noise", EXACT_INVERSE, "itarflow_digits", _noise(std), teacher=f"itarflow_digits_noise_{std}"),
                _row("1: noise", f"{std}", _BASE, _noise(std), teacher=f"itarflow_digits_noise_{std}"),
            )
        ),
        # At 3, the recipe's clip, nothing saturates, so a wider one changes nothing.
        _row("3: clip", EXACT_INVERSE, "itarflow_digits", teacher="itarflow_digits_bound_1"),
        _row("3: clip", "at 1", _BASE, teacher="itarflow_digits_bound_1"),
        _row("5: norm control", "clip alone", _BASE, ("model.inverse.trajectory_norm=none",)),
        _row("5: norm control", "trajectory norm alone", _BASE, (), teacher="itarflow_digits_unbounded"),
        _row("6: axis of the norm", "per sample", _BASE, ("model.inverse.trajectory_norm=sample",)),
        _row("7: projections", "two layers", _BASE, ("model.inverse.projection=mlp",)),
        _row(
            "10: weighting",
            "mean with the same constant",
            _BASE,
            ("model.inverse.loss.loss.reduction=mean", "model.reconstruction.loss.reduction=mean"),
        ),
        _row("10: weighting", "power 0.5", _BASE, ("model.inverse.loss.power=0.5", "model.reconstruction.power=0.5")),
        _row("14: training scales", "up to 2", _BASE, ("model.guidance.max_scale=2.0",)),
        _row("19: denoising group", "two layers", _BASE, ("model.inverse.backbone.denoise_layers=2",)),
    ),
    teachers={
        **_TEACHER,
        "itarflow_digits_unbounded": ("itarflow_digits", ("model.flow.bound=null",)),
        **{f"itarflow_digits_noise_{std}": ("itarflow_digits", _noise(std)) for std in (0.1, 0.3)},
        "itarflow_digits_bound_1": ("itarflow_digits", ("model.flow.bound=1.0",)),
    },
    shared=_SHORT,
    teacher_updates=_TEACHER_UPDATES,
)
