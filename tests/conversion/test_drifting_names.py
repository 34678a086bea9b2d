"""Drifting's names and layouts: networks of the published code under our names, and back.

With GENFLOW_GOLDEN set to a folder that holds the encoders' vectors in ``drifting/``, those are compared too.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.backbones.lightning_dit import LightningDiT
from genflow.condition import Condition
from genflow.conversion.drifting import from_jax, to_jax
from genflow.conversion.drifting_release import generator_arguments
from genflow.feature_encoders.latent_mae import LatentMAE

HERE = Path(__file__).parents[1] / "golden" / "drifting"
FOLDERS = [HERE, *([Path(os.environ["GENFLOW_GOLDEN"]) / "drifting"] if "GENFLOW_GOLDEN" in os.environ else [])]
FILES = {path.stem: path for folder in FOLDERS for path in folder.glob("*.npz")}
GENERATORS = ("generator_latent_like", "generator_pixel_like", "generator_plain_flags")
ENCODERS = tuple(name for name in ("mae_latent_like", "mae_pixel_like") if name in FILES)
TOLERANCE = 1e-5  # of the largest entry, as the README of the vectors says


def golden(name):
    archive = np.load(FILES[name], allow_pickle=False)
    parameters = {
        key.removeprefix("params/"): torch.from_numpy(archive[key])
        for key in archive.files
        if key.startswith("params/")
    }
    return archive, json.loads(str(archive["config"])), parameters


def channels_first(array):
    return torch.from_numpy(array).movedim(-1, 1).contiguous()


def close(found, expected):
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("name", GENERATORS)
def test_published_generators(name):
    archive, config, parameters = golden(name)
    network = LightningDiT(**generator_arguments(config))
    network.load_state_dict(from_jax(parameters))
    labels, style = (torch.from_numpy(archive[key]).long() for key in ("labels", "noise_labels"))
    condition = Condition(labels=labels, guidance=torch.from_numpy(archive["cfg_scale"]), style=style)
    with torch.no_grad():
        close(network(channels_first(archive["noise"]), condition)["main"], channels_first(archive["samples"]))


@pytest.mark.parametrize("name", (*GENERATORS[:2], *ENCODERS))
def test_there_and_back(name):
    parameters = golden(name)[2]
    same(to_jax(from_jax(parameters)), parameters)


@pytest.mark.parametrize("name", ENCODERS)
def test_published_encoders(name):
    archive, config, parameters = golden(name)
    samples = channels_first(archive["x"])
    channels, depths, size = config["in_channels"], config["layers"], config["input_patch_size"]
    shape = (channels, samples.shape[2], config["base_channels"], depths, size, config["num_classes"])
    whole = LatentMAE(*shape, decoder=True)
    whole.load_state_dict(from_jax(parameters))
    used = {path: value for path, value in parameters.items() if not path.startswith("decoder/")}
    encoder = LatentMAE(*shape)
    encoder.load_state_dict(from_jax(used))
    with torch.no_grad():
        for feature, found in encoder(samples).items():
            close(found, torch.from_numpy(archive[f"act/{feature}"]))
        patches = whole.patches(samples)
        hidden = channels_first(archive["mask"])
        errors = (whole.reconstruct(patches * (1 - hidden))[0] - patches).square() * hidden
        errors = errors.sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))
        close(errors, torch.from_numpy(archive["lambda0/recon_loss"]))


def test_names_of_an_encoder():
    """All names of a published encoder, and the layout of kernels."""
    network = LatentMAE(3, 32, width=8, depths=[1, 2, 1, 1], patch_size=2, num_classes=5, decoder=True)
    arrays = to_jax(network.state_dict())
    ends = {"conv": ("kernel",), "norm": ("scale", "bias")}
    blocks = ["stages_0/layers_0", *(f"stages_{stage}/layers_0" for stage in (1, 2, 3)), "stages_1/layers_1"]
    modules = {
        kind: [f"encoder/{name}1", *(f"encoder/{block}/{name}{i}" for block in blocks for i in (1, 2))]
        for kind, name in (("conv", "conv"), ("norm", "gn"))
    }
    modules["conv"].append("decoder/bridge/conv")
    modules["norm"].append("decoder/bridge/gn")
    for stage in (1, 2, 3):
        modules["conv"].append(f"encoder/stages_{stage}/layers_0/proj_conv")
        modules["norm"].append(f"encoder/stages_{stage}/layers_0/proj_gn")
    modules["norm"] += [f"encoder/layer{stage}_norm" for stage in (1, 2, 3, 4)]
    for up in ("up43", "up32", "up21", "up10"):
        modules["norm"].append(f"decoder/{up}/concat_norm_fn")
        for part in ("proj", "refine"):
            modules["conv"].append(f"decoder/{up}/{part}/conv")
            modules["norm"].append(f"decoder/{up}/{part}/gn")
    expected = {f"{module}/{end}" for kind, names in modules.items() for module in names for end in ends[kind]}
    expected |= {f"{module}/{end}" for module in ("decoder/head", "fc") for end in ("kernel", "bias")}
    assert arrays.keys() == expected
    shapes = {name: tuple(value.shape) for name, value in arrays.items()}
    assert shapes["encoder/conv1/kernel"] == (3, 3, 12, 8)
    assert shapes["encoder/stages_2/layers_0/proj_conv/kernel"] == (1, 1, 16, 32)
    assert shapes["decoder/up43/proj/conv/kernel"] == (3, 3, 96, 32) and shapes["decoder/up10/refine/gn/scale"] == (8,)
    assert shapes["decoder/head/kernel"] == (1, 1, 8, 12) and shapes["fc/kernel"] == (64, 5)
    same(from_jax(arrays), network.state_dict())


def test_names_that_neither_network_has():
    for path in ("LightningDiT_0/blocks_0/RMSNorm_2/weight", "fc/gain", "fc", "encoder/layer5_norm/scale", ""):
        with pytest.raises(ValueError, match=f"^'{path}' has no counterpart$"):
            from_jax({path: torch.zeros(1)})
    for name in ("layers.0.norm.weight", "stages.0.conv1.weight", "weight", "labels"):
        with pytest.raises(ValueError, match=f"^'{name}' has no counterpart$"):
            to_jax({name: torch.zeros(1)})


@pytest.mark.parametrize("index", [0, 1])
def test_half_of_what_is_stacked(index):
    path = f"LightningDiT_0/blocks_3/SwiGLUFFN_0/TorchLinear_{index}/Dense_0/bias"
    with pytest.raises(KeyError, match=f"gate_up.{1 - index}.bias"):
        from_jax({path: torch.zeros(1)})
