"""Drifting's generator with golden parameters: outputs, gradients, precisions (tests/golden/README.md)."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.backbones import LightningDiT
from genflow.condition import Condition
from genflow.conversion.drifting import from_jax
from genflow.conversion.drifting_release import generator_arguments

GOLDEN = Path(__file__).parents[1] / "golden" / "drifting"
FILES = ("latent_like", "pixel_like", "plain_flags")


def load(file, **options):
    """The golden backbone and the file's arrays, images as (B, C, H, W)."""
    with np.load(GOLDEN / f"generator_{file}.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    config = json.loads(str(arrays.pop("config")))
    backbone = LightningDiT(**{**generator_arguments(config), **options})
    golden = {name: torch.from_numpy(value) for name, value in arrays.items()}
    published = {name.removeprefix("params/"): golden.pop(name) for name in arrays if name.startswith("params/")}
    backbone.load_state_dict(from_jax(published))
    golden = {name: value.permute(0, 3, 1, 2) if value.dim() == 4 else value for name, value in golden.items()}
    return backbone, golden


def golden_condition(golden):
    return Condition(labels=golden["labels"].long(), guidance=golden["cfg_scale"], style=golden["noise_labels"].long())


def close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("file", FILES)
def test_golden_outputs_and_gradients(file):
    backbone, golden = load(file)
    condition, noise = golden_condition(golden), golden["noise"].requires_grad_()
    close(backbone.embed_condition(condition, len(noise)), golden["cond"])
    samples = backbone(noise, condition)["main"]
    close(samples, golden["samples"])
    (samples * golden["probe"]).sum().backward()
    close(noise.grad, golden["grad_noise"])
    norm = torch.stack([parameter.grad.norm() for parameter in backbone.parameters()]).norm()
    close(norm, golden["grad_params_global_norm"])


@pytest.mark.parametrize("file", FILES)
def test_one_guidance_scale_for_all(file):
    backbone, golden = load(file)
    condition = golden_condition(golden)
    one = replace(condition, guidance=torch.tensor(1.5))
    close(backbone.embed_condition(one, len(golden["noise"])), golden["cond_scalar_cfg_1p5"])
    each = replace(condition, guidance=torch.full_like(condition.guidance, 1.5))
    assert torch.equal(backbone(golden["noise"], one)["main"], backbone(golden["noise"], each)["main"])


def relative(found, expected):
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("precision", "name"), [("float32", "attn_fp32"), ("bfloat16", "attn_bf16")])
def test_golden_under_autocast(precision, name):
    backbone, golden = load("latent_like", attention_precision=precision)
    condition = golden_condition(golden)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = backbone.embed_condition(condition, len(golden["noise"]))
        samples = backbone(golden["noise"], condition)["main"]
    assert embedding.dtype == samples.dtype == torch.bfloat16
    assert relative(embedding, golden[f"bf16_{name}_cond"]) < 0.01
    assert relative(samples, golden[f"bf16_{name}_samples"]) < 0.03
