"""Hidden states of velocity models as features."""

import contextlib

import pytest
import torch
from torch import nn

from genflow.backbones import DiT, JiT, PixelTransformer
from genflow.condition import Condition
from genflow.feature_encoders import TeacherFeatures


def networks():
    torch.manual_seed(0)
    shape = {"image_size": 8, "channels": 1, "patch_size": 2, "width": 16, "depth": 3, "heads": 2, "num_classes": 3}
    jit = JiT(**shape, bottleneck=8, context_tokens=2, context_start=1)
    dit = DiT(**shape)
    pixels = PixelTransformer(**shape, head_depth=1, auxiliary_depth=1)
    return {"jit": jit, "dit": dit, "pixels": pixels}


@contextlib.contextmanager
def watched(layer):
    """Hidden states that a layer gives meanwhile; some give other things beside."""
    seen = []

    def keep(_layer, _inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(keep)
    yield seen
    handle.remove()


@pytest.mark.parametrize("name", ["jit", "dit", "pixels"])
def test_features_are_hidden_states_with_a_derivative(name):
    network = networks()[name]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    encoder = TeacherFeatures(network, [0, 1], time=0.25)
    samples = torch.randn(2, 1, 8, 8, requires_grad=True)
    with watched(network.repeated_layers()[1]) as seen:
        features = encoder(samples)
    assert tuple(features) == encoder.feature_names == ("layer0", "layer1")
    assert torch.equal(features["layer1"], seen[0]) and features["layer0"].shape[0::2] == (2, 16)
    features["layer1"].square().sum().backward()
    assert samples.grad.abs().sum() > 0
    assert not any(layer._forward_hooks for layer in network.repeated_layers())


def test_time_is_told_and_samples_do_not_interact():
    network = networks()["jit"]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    samples = torch.randn(3, 1, 8, 8)
    early, late = (TeacherFeatures(network, [2], time)(samples)["layer2"] for time in (0.0, 0.5))
    assert not torch.allclose(early, late)
    torch.testing.assert_close(TeacherFeatures(network, [2])(samples[1:2])["layer2"], early[1:2])
    none = torch.full((3,), 3)
    zeros = torch.zeros(3)
    with watched(network.repeated_layers()[2]) as seen:
        network(samples, Condition(labels=none, time=zeros, duration=zeros))
    assert torch.equal(seen[0], early)


def test_refusals():
    network = networks()["pixels"]
    with pytest.raises(ValueError, match=r"found 9; PixelTransformer has the layers 0 to \d"):
        TeacherFeatures(network, [9])
    unused = len(network.repeated_layers()) - 1  # of the auxiliary head, which sampling does without
    with pytest.raises(ValueError, match="takes no part in its output"):
        TeacherFeatures(network, [unused])(torch.randn(1, 1, 8, 8))
