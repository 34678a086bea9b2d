"""Drifting's ablation on digits: what the paper compares on ImageNet (docs/drifting.md)."""

from functools import partial

from genflow.reproduction.ablation import Ablation, Row

_BASE = "drift_digits"
#: Scale 1 is no guidance; all rows are compared without.
_row = partial(Row, teacher="mae_digits", guidance=1.0)
#: About two minutes a run on one core.
_UPDATES = 700
_ONE = ("model.field.temperatures=[0.2]",)

PAPER_ROWS = Ablation(
    name="table",
    rows=(
        _row("field", "V+ - V-", _BASE, paper=8.46),
        _row("field", "1.5 V+ - V-", f"{_BASE}_attraction_1.5", paper=41.05),
        _row("field", "V+ - 1.5 V-", f"{_BASE}_repulsion_1.5", paper=46.28),
        _row("field", "V+ only", f"{_BASE}_attraction_only", paper=177.14),
        _row("field", "Sinkhorn divergence", "sinkhorn_digits"),
        _row("kernel normalised over", "both", _BASE, paper=8.46),
        _row("kernel normalised over", "targets", f"{_BASE}_softmax_over_targets", paper=8.92),
        _row("kernel normalised over", "nothing", f"{_BASE}_no_normalization", paper=10.54),
        _row("temperatures", "0.2, 0.05, 0.02", _BASE, paper=8.46),
        _row("temperatures", "0.2", f"{_BASE}_temperature_0.2", paper=8.96),
        _row("temperatures", "0.05", f"{_BASE}_temperature_0.05", paper=8.67),
        _row("temperatures", "0.02", f"{_BASE}_temperature_0.02", paper=10.62),
        _row("positives", "all", _BASE, paper=8.46),
        _row("positives", "a quarter", f"{_BASE}_few_positives", paper=10.39),
        _row("style codes", "with", _BASE, paper=8.46),
        _row("style codes", "without", f"{_BASE}_no_style", paper=8.86),
        _row("encoder", "masked autoencoder", _BASE),
        _row("encoder", "none", f"{_BASE}_no_encoder", teacher=None),
        _row("encoder", "none, one temperature", f"{_BASE}_no_encoder", _ONE, teacher=None),
    ),
    teachers={"mae_digits": ("mae_digits", ())},
    shared=(f"train_cfg.max_iters={_UPDATES}",),
    prerequisite="encoder",
)
