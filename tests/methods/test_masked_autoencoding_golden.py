"""The masked autoencoder's features, losses and gradients against the published code of Drifting.

The vectors are read from the folder ``drifting/`` in GENFLOW_GOLDEN; without that there is nothing to compare.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genflow.codecs import Identity
from genflow.conversion.drifting import from_jax
from genflow.draws import Draws
from genflow.feature_encoders import LatentMAE
from genflow.methods import MaskedAutoencoding
from genflow.methods.masked_autoencoding import ClassificationSection

FOLDER = Path(os.environ.get("GENFLOW_GOLDEN", "not set")) / "drifting"
FILES = sorted(FOLDER.glob("mae_*.npz"))
TOLERANCE = 1e-5  # of the largest entry
pytestmark = pytest.mark.skipif(not FILES, reason="GENFLOW_GOLDEN is not set")


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request):
    """The file's arrays and our encoder with its weights."""
    with np.load(request.param, allow_pickle=False) as file:
        config = json.loads(str(file["config"]))
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "config"}
    encoder = LatentMAE(
        config["in_channels"],
        arrays["x"].shape[1],
        config["base_channels"],
        tuple(config["layers"]),
        config["input_patch_size"],
        config["num_classes"],
        decoder=True,
    )
    prefix = "params/"
    state = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    encoder.load_state_dict(from_jax(state))
    for name in ("x", "mask"):
        arrays[name] = arrays[name].permute(0, 3, 1, 2)
    return arrays, encoder


def close(found, expected, name):
    error = (found.detach() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"{name}: {error:.2e}"


@torch.no_grad()
def test_features(golden):
    arrays, encoder = golden
    found = encoder(arrays["x"])
    assert {f"act/{name}" for name in found} == {name for name in arrays if name.startswith("act/")}
    for name, value in found.items():
        close(value, arrays[f"act/{name}"], name)


@pytest.mark.parametrize(
    ("case", "classification"), [("lambda0", None), ("lambda0p1", ClassificationSection(0.1, 0, 1))]
)
def test_losses_and_gradients(golden, monkeypatch, case, classification):
    arrays, encoder = golden
    x, labels = arrays["x"], arrays["labels"].long()
    method = MaskedAutoencoding(encoder, Identity(x.shape[-1], x.shape[1]), classification=classification)
    monkeypatch.setattr(method, "mask", lambda draws: arrays["mask"])
    second_update = Draws(0, torch.arange(len(x), 2 * len(x)), len(x))
    terms = method(x, labels, second_update)
    method.zero_grad()
    terms["loss"].backward()
    terms["grad_global_norm"] = nn.utils.get_total_norm([value.grad for value in method.parameters()])
    names = {
        "loss": "loss",
        "recon_loss": "reconstruction",
        "cls_loss": "classification",
        "accuracy": "accuracy",
        "mask_ratio": "mask_share",
        "grad_global_norm": "grad_global_norm",
    }
    for theirs, ours in names.items():
        expected = arrays[f"{case}/{theirs}"].mean()
        assert terms[ours].item() == pytest.approx(expected.item(), rel=TOLERANCE), theirs
