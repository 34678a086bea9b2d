"""BiFlow's ablation on digits: what the paper compares on ImageNet (spec 3.9), and the spec's open points (3.10)."""

from genflow.analysis.ablation import EXACT_INVERSE, Ablation, Row

_BASE = "biflow_digits"
_TEACHER = {"itarflow_digits": ("itarflow_digits", ())}
#: About two minutes a run on one core.
_SHORT = ("train_cfg.max_iters=800",)
_TEACHER_UPDATES = 1000

PAPER_ROWS = Ablation(
    name="table",
    rows=(
        Row("reverse", EXACT_INVERSE, "itarflow_digits", paper=44.46),
        Row("reverse", "naive distillation", f"{_BASE}_naive", paper=43.41),
        Row("reverse", "hidden distillation", f"{_BASE}_hidden_distillation", paper=55.00),
        Row("reverse", "hidden alignment", _BASE, paper=36.93),
        Row("denoising", "none", f"{_BASE}_no_denoise", paper=100.51),
        Row("denoising", "score step", f"{_BASE}_score_denoise", paper=42.62),
        Row("denoising", "learned", _BASE, paper=31.88),
        Row("norm control", "none", f"{_BASE}_no_norm_control", teacher="itarflow_digits_unbounded", paper=45.54),
        Row("norm control", "clip", _BASE, ("model.inverse.trajectory_norm=none",), paper=31.88),
        Row("norm control", "clip and trajectory norm", _BASE),
        Row("distance", "squared error", _BASE, paper=31.88),
        Row("distance", "squared error and features", f"{_BASE}_perceptual", paper=2.46),
        Row("guidance", "two passes", f"{_BASE}_two_pass_guidance"),
        Row("guidance", "learned in training", _BASE),
        Row("guidance", "two passes", f"{_BASE}_two_pass_guidance", guidance=0.5, paper=6.90),
        Row("guidance", "learned in training", _BASE, guidance=0.5, paper=6.79),
        Row("guidance", "two passes", f"{_BASE}_two_pass_guidance", guidance=1.0),
        Row("guidance", "learned in training", _BASE, guidance=1.0),
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
        Row("as in biflow_digits", "noise 0.2, clip 3, state norm, linear heads", _BASE),
        *(
            row
            for std in (0.1, 0.3)
            for row in (
                Row("1: noise", EXACT_INVERSE, "itarflow_digits", _noise(std), teacher=f"itarflow_digits_noise_{std}"),
                Row("1: noise", f"{std}", _BASE, _noise(std), teacher=f"itarflow_digits_noise_{std}"),
            )
        ),
        # At 3, the recipe's clip, nothing saturates, so a wider one changes nothing.
        Row("3: clip", EXACT_INVERSE, "itarflow_digits", teacher="itarflow_digits_bound_1"),
        Row("3: clip", "at 1", _BASE, teacher="itarflow_digits_bound_1"),
        Row("5: norm control", "clip alone", _BASE, ("model.inverse.trajectory_norm=none",)),
        Row("5: norm control", "trajectory norm alone", _BASE, (), teacher="itarflow_digits_unbounded"),
        Row("6: axis of the norm", "per sample", _BASE, ("model.inverse.trajectory_norm=sample",)),
        Row("7: projections", "two layers", _BASE, ("model.inverse.projection=mlp",)),
        Row(
            "10: weighting",
            "mean with the same constant",
            _BASE,
            ("model.inverse.loss.loss.reduction=mean", "model.reconstruction.loss.reduction=mean"),
        ),
        Row("10: weighting", "power 0.5", _BASE, ("model.inverse.loss.power=0.5", "model.reconstruction.power=0.5")),
        Row("14: training scales", "up to 2", _BASE, ("model.guidance.max_scale=2.0",)),
        Row("19: denoising group", "two layers", _BASE, ("model.inverse.backbone.denoise_layers=2",)),
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
