"""The drift-loss benchmark at toy size: both ways agree, shapes are the encoders', what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genflow.benchmarks import drift_loss
from genflow.benchmarks.drift_loss import DriftLossOptions, benchmark_drift_loss, drift_loss_table
from genflow.errors import UserError

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = str(RECIPES / "drift_digits.yaml")
SMALL = ("model.labels_per_update=2", "model.samples_per_label=5", "model.positives=4")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_ways_have_one_loss_and_gradient(precision):
    options, done = DriftLossOptions(repeats=1, precision=precision), []
    report = benchmark_drift_loss(RECIPE, options, SMALL, lambda: done.append(None))
    assert len(done) == options.runs
    assert report["losses"][0] == pytest.approx(report["losses"][1], rel=1e-4)
    assert report["gradient_difference"] < drift_loss._TOLERANCE[precision]
    assert report["time_ratio"] == pytest.approx(1 / report["ratio"]) and report["labels"] == 2
    assert report["samples"] == {"generated": 5, "positive": 4, "negative": 4}
    assert json.loads(json.dumps(report))["features"] == report["features"] == 24
    assert drift_loss_table(report).row_count == 4


def test_a_wrong_gradient_is_not_reported(monkeypatch):
    plain = drift_loss.plain_loss

    def wrong(sets, *further):
        return plain(replace(sets, positive=sets.positive + 0.1), *further)

    monkeypatch.setattr(drift_loss, "plain_loss", wrong)
    with pytest.raises(UserError, match="the two gradients differ"):
        benchmark_drift_loss(RECIPE, DriftLossOptions(repeats=1), SMALL)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("pmf_digits", (), "model: found MeanFlow, expected a Drifting"),
        ("sinkhorn_digits", (), "expected a DriftingField as published"),
        ("drift_digits_attraction_1.5", (), "expected a DriftingField as published"),
        ("drift_digits", ("model.field.kernel=gaussian",), "expected a DriftingField as published"),
        ("drift_digits", ("model.field.annealing={factor: 2.0, updates: 9}",), "expected a DriftingField as published"),
    ],
)
def test_what_is_not_transcribed_is_refused(recipe, overrides, message):
    with pytest.raises(UserError, match=message):
        benchmark_drift_loss(str(RECIPES / f"{recipe}.yaml"), DriftLossOptions(), overrides)


def test_no_repeats_are_refused():
    with pytest.raises(UserError, match="--repeats: found 0"):
        DriftLossOptions(repeats=0)


def test_features_have_the_shapes_of_the_encoders():
    from genflow.config.graph import ComponentGraph

    method = drift_loss._on_meta(ComponentGraph.load(RECIPE, list(SMALL)), RECIPE)
    features = drift_loss.random_features(method, torch.float32, torch.device("cpu"))
    assert features["layer1"].generated.shape == (2, 5, 16, 32) and features["layer1"].generated.requires_grad
    assert features["global"].negative.shape == (2, 4, 1, 64)
