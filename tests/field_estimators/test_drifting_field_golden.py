"""The drift loss against the published code's numbers (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.field_estimators import DriftingField
from genflow.field_estimators.base import FeatureSets

FILES = sorted((Path(__file__).parents[1] / "golden" / "drifting").glob("drift_loss_*.npz"))
TOLERANCE = 5e-5  # of the largest entry
#: Of rounding noise, whose true value is 0; the least mean square by which a force is divided is 1e-8.
NOISE = {"loss": 1.0, "info_scale": 1e-3, "info_loss_R": 1e-8, "grad_gen": 1e3}
COPIES, POSITIONS = 2, 3


def load(path):
    """The file's arrays, its temperatures, and whether its numbers are more than rounding noise."""
    with np.load(path, allow_pickle=False) as archive:
        config = json.loads(str(archive["config"]))
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files if name != "config"}
    return arrays, config["R_list"], config.get("compare") != "finite_only"


def sets_and_weights(arrays, positions):
    """The samples, repeated at every position, and their weights: generated, negative, positive."""
    generated, positive = arrays["gen"], arrays["fixed_pos"]
    negative = arrays.get("fixed_neg", positive[:, :0])
    parts = {"gen": generated, "neg": negative, "pos": positive}
    weights = [arrays.get(f"weight_{name}", torch.ones(part.shape[:2])) for name, part in parts.items()]
    repeated = [part.unsqueeze(2).repeat(1, 1, positions, 1) for part in (generated, positive, negative)]
    given = any(name.startswith("weight_") for name in arrays)
    return FeatureSets(*repeated), torch.cat(weights, dim=1) if given else None


def close(found, expected, name):
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= TOLERANCE, f"{name}: {error:.2e}"


def compare(drift, name, sets, arrays, real):
    positions = sets.generated.shape[2]
    (grad,) = torch.autograd.grad(drift.losses[name].sum(), sets.generated)
    found = {
        "loss": drift.losses[name].detach(),
        "info_scale": drift.statistics[name].scale,
        "info_loss_R": drift.statistics[name].force,
        "grad_gen": grad.sum(dim=2),  # a position has its share
    }
    for key, value in found.items():
        if real:
            close(value, arrays[key], f"{name} {key}")
        else:
            assert value.abs().max() < NOISE[key], f"{name} {key}"  # false for NaN
    assert torch.equal(grad, grad[:, :, :1].expand(-1, -1, positions, -1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("drift_loss_"))
def test_losses_statistics_and_gradients(path):
    arrays, temperatures, real = load(path)
    sets, weights = sets_and_weights(arrays, positions=1)
    sets.generated.requires_grad_()
    compare(DriftingField(temperatures=temperatures)({"it": sets}, weights), "it", sets, arrays, real)


@pytest.mark.parametrize("kept", [0, 40_000], ids=["nothing_kept", "some_kept"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("drift_loss_"))
def test_in_blocks_that_are_computed_again(path, kept, monkeypatch):
    arrays, temperatures, real = load(path)
    field = DriftingField(temperatures=temperatures)
    field.memory = kept
    features = {}
    for index in range(COPIES):
        features[f"copy {index}"], weights = sets_and_weights(arrays, POSITIONS)
        features[f"copy {index}"].generated.requires_grad_()
    groups = []
    coefficients = DriftingField.coefficients

    def counted(self, distances, *arguments):
        groups.append(len(distances))
        return coefficients(self, distances, *arguments)

    monkeypatch.setattr(DriftingField, "coefficients", counted)
    drift = field(features, weights)
    for name, sets in features.items():
        compare(drift, name, sets, arrays, real)
    once = COPIES * len(arrays["gen"]) * POSITIONS * len(temperatures)
    if kept:
        assert once <= sum(groups) <= 2 * once
    else:
        assert set(groups) == {1} and sum(groups) == 2 * once
