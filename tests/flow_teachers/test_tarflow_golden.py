"""TARFlow against vectors computed with the published implementation (tests/golden/README.md).

With GENFLOW_GOLDEN set to a folder that holds further vectors in ``tarflow/``, those are compared too.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.flow_teachers.tarflow import TARFlow, official_parameter_names
from genflow.layers.patches import patchify, unpatchify

HERE = Path(__file__).parents[1] / "golden" / "tarflow"
FOLDERS = [HERE, *([Path(os.environ["GENFLOW_GOLDEN"]) / "tarflow"] if "GENFLOW_GOLDEN" in os.environ else [])]
MODELS = sorted({path.stem: path for folder in FOLDERS for path in folder.glob("*vp_*.npz")}.values())
DTYPES = {"f32": torch.float32, "f64": torch.float64}


class Golden:
    """One file in one precision: the model, and comparisons at the file's tolerances."""

    def __init__(self, path: Path, precision: str):
        self.data = np.load(path, allow_pickle=False)
        self.precision, self.dtype = precision, DTYPES[precision]
        config = json.loads(str(self.data["config"]))
        self.meta = json.loads(str(self.data["meta"]))
        self.patch_size, self.channels = config["patch_size"], config["in_channels"]
        self.flow = TARFlow(
            config["img_size"],
            config["in_channels"],
            config["patch_size"],
            config["channels"],
            config["num_blocks"],
            config["layers_per_block"],
            config["num_classes"],
            config["head_dim"],
            scaled=config["nvp"],
        )
        state = {name[3:]: torch.from_numpy(self.data[name]) for name in self.data if name.startswith("sd/")}
        self.names = official_parameter_names(state)
        own = self.flow.state_dict()
        assert sorted(self.names.values()) == sorted(own)
        self.flow.load_state_dict({self.names[n]: v.view_as(own[self.names[n]]) for n, v in state.items()})
        self.flow = self.flow.to(self.dtype)
        self.x = self.tensor("x")
        self.y = self.labels("y")
        self.y_full = self.labels("y_full")

    def labels(self, key):
        return torch.from_numpy(self.data[key]) if key in self.data else None

    def tensor(self, key):
        return torch.from_numpy(self.data[key]).to(self.dtype)

    def close(self, ours, key, float32):
        """Compare with the stored result at the README's tolerance: 1e-10 in float64, ``float32`` otherwise."""
        theirs = torch.from_numpy(self.data[f"{self.precision}/{key}"]).to(self.dtype)
        difference = (ours.detach() - theirs.view_as(ours)).abs().max().item()
        assert difference <= (1e-10 if self.precision == "f64" else float32), f"{key}: {difference}"

    def image(self, tokens):
        return unpatchify(tokens, self.patch_size, self.channels)

    def tokens(self, image):
        return patchify(image, self.patch_size)


CASES = [(path, precision) for path in MODELS for precision in DTYPES]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].stem}-{case[1]}")
def golden(request):
    return Golden(*request.param)


def test_forward(golden):
    trajectory = golden.flow(golden.x, golden.y)
    golden.close(golden.tokens(golden.x), "tokens", 0.0)
    golden.close(golden.tokens(trajectory.latent), "z", 2e-5)
    golden.close(trajectory.log_det, "logdets", 1e-6)
    for index, (state, log_det) in enumerate(zip(trajectory.states[1:], trajectory.log_dets, strict=True)):
        golden.close(golden.tokens(state), f"out_{index}", 2e-5)
        golden.close(log_det, f"block_logdet_{index}", 1e-6)


def test_forward_with_other_labels(golden):
    if golden.y is None:
        assert not any(name.endswith("null/z") for name in golden.data)
        return
    for name, labels in (("full", golden.y_full), ("null", None)):
        trajectory = golden.flow(golden.x, labels)
        golden.close(golden.tokens(trajectory.latent), f"{name}/z", 2e-5)
        golden.close(trajectory.log_det, f"{name}/logdets", 1e-6)
    # Both ways to say "no class" are the null class.
    null = golden.flow(golden.x, None).latent
    for label in (-1, golden.flow.num_classes):
        assert torch.equal(golden.flow(golden.x, torch.full_like(golden.y, label)).latent, null)


def test_loss_and_gradients(golden):
    x = golden.x.clone().requires_grad_(True)
    trajectory = golden.flow(x, golden.y)
    loss = 0.5 * trajectory.latent.square().mean() - trajectory.log_det.mean()
    loss.backward()
    golden.close(loss, "loss", 2e-6)
    golden.close(x.grad, "grad_x", 1e-4 * np.abs(golden.data[f"{golden.precision}/grad_x"]).max())
    parameters = dict(golden.flow.named_parameters())
    keys = [name.split("/", 1)[1] for name in golden.data if name.startswith(f"{golden.precision}/grad/")]
    assert keys
    for key in keys:
        largest = np.abs(golden.data[f"{golden.precision}/{key}"]).max()
        golden.close(parameters[golden.names[key.removeprefix("grad/")]].grad, key, 1e-4 * largest)


def test_density(golden):
    golden.close(golden.flow.bits_per_dimension(golden.x, golden.y), "bpd", 1e-5)
    z = golden.flow(golden.x, golden.y).latent.flatten(1)
    log_prior = -0.5 * (z.square() + np.log(2 * np.pi)).sum(dim=1) - z.shape[1] * np.log(128)
    key = "log_prior_minus_log128"
    if f"{golden.precision}/{key}" in golden.data:
        golden.close(log_prior, key, 2e-3)


def test_round_trip(golden):
    z = golden.image(golden.tensor(f"{golden.precision}/roundtrip/z_in"))
    x = golden.flow.inverse(golden.flow.sample_prior(z), golden.y)
    golden.close(x, "roundtrip/x", 2e-5)
    assert (x - golden.x).abs().max() <= (1e-10 if golden.precision == "f64" else 1e-4)


def test_inverse_variants(golden):
    z = golden.image(golden.tensor("z_prior"))
    guided = {"ab": "both", "a": "scale", "b": "shift"}
    for variant in golden.meta["reverse_variants"]:
        labels = {None: None, "y_full": golden.y_full, "minus_one": "last"}[variant["y"]]
        if isinstance(labels, str):
            # The published code reads the dropped label -1 as the last class; ours is the null class.
            labels = torch.full_like(golden.y_full, golden.flow.num_classes - 1)
        states = golden.flow.inverse_states(
            golden.flow.sample_prior(z),
            labels,
            variant["guidance"],
            guided=guided[variant["guide_what"]],
            anneal=variant["annealed_guidance"],
            temperature=variant["attn_temp"],
        )
        tolerance = 5e-5 if variant["guidance"] else 2e-5
        golden.close(states[-1], f"rev/{variant['name']}/x", tolerance)
        if variant["has_sequence"]:
            golden.close(z, f"rev/{variant['name']}/seq_0", 0.0)
            for index, state in enumerate(states[1:], start=1):
                golden.close(state, f"rev/{variant['name']}/seq_{index}", tolerance)


def test_denoising(golden):
    prefix = f"{golden.precision}/denoise"
    if f"{prefix}/x_in" not in golden.data:
        assert not any("denoise" in name for name in golden.data)
        return
    x = golden.tensor(f"{prefix}/x_in")
    noise_std = golden.meta["denoise_mult1.0"]["noise_std"]
    golden.close(golden.flow.score(x, golden.y_full), "denoise/score", 5e-5)
    for multiplier in (1.0, 0.5):
        key = f"denoise/mult{multiplier}/x_out"
        golden.close(golden.flow.denoise(x, golden.y_full, noise_std, multiplier), key, 1e-5)


def test_prior_update():
    data = np.load(HERE / "prior_update.npz", allow_pickle=False)
    config = json.loads(str(data["config"]))
    for precision, dtype in DTYPES.items():
        for variant in ("direct", "train_loop"):
            flow = TARFlow(config["img_size"], 3, config["patch_size"], config["channels"], 1, 1, scaled=False)
            flow = flow.to(dtype)
            expected = torch.from_numpy(data[f"{precision}/{variant}/var"])
            tolerance = 1e-10 if precision == "f64" else 1e-6
            for step, z in enumerate(torch.from_numpy(data["z"]).to(dtype), start=1):
                flow.update_prior(unpatchify(z, config["patch_size"], 3))
                assert (flow.prior_variance - expected[step]).abs().max() <= tolerance
