"""LPIPS against the package lpips on the same random VGG16, and its behaviour where all channels are 0."""

import copy
import itertools
import sys
import warnings

import pytest
import torch
from torch import nn

from genflow.analysis import flops
from genflow.errors import UserError
from genflow.feature_encoders import LPIPS
from genflow.feature_encoders.unit_features import unit_features
from genflow.losses import FeatureDistance

lpips = pytest.importorskip("lpips")

#: Layers of torchvision's VGG16 after which a feature is taken.
TAPS = {3: "relu1_2", 8: "relu2_2", 15: "relu3_3", 22: "relu4_3", 29: "relu5_3"}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    with warnings.catch_warnings():  # about old names of arguments
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    for layer in reference.net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias, std=0.1)
    return reference


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory):
    """The same VGG16 as torchvision names it, with a classifier."""
    state = {f"features.{name.split('.', 1)[1]}": value for name, value in theirs.net.state_dict().items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def ours(weights):
    return FeatureDistance(LPIPS(str(weights)))


def images(channels=3):
    return torch.rand(2, 3, channels, 40, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_equals_the_package(theirs, ours):
    prediction, target = images()
    prediction[0] = 0.5 * target[0]
    prediction.requires_grad_()
    expected = theirs(prediction, target).flatten()
    found = ours(prediction, target)
    assert torch.allclose(found, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(distance.sum(), prediction)[0] for distance in (found, expected)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-5 * gradients[1].abs().max())


def test_identical_images_have_distance_zero(ours):
    assert not ours(images()[0], images()[0]).any()


@pytest.mark.parametrize("value", ["black", "zero features"])
def test_gradient_is_finite_where_all_channels_are_zero(ours, weights, value):
    """Without biases, an image of the mean colour makes every channel of every level 0."""
    target = images()[1]
    if value == "black":
        loss, prediction = ours, torch.full_like(target, -1)
    else:
        loss = FeatureDistance(LPIPS(str(weights)))
        for layer in loss.encoder.layers.modules():
            if isinstance(layer, nn.Conv2d):
                layer.bias.zero_()
        prediction = loss.encoder.mean.expand_as(target).clone()
        assert not any(feature.any() for feature in loss.encoder(prediction).values())
    distance = loss(prediction.requires_grad_(), target)
    distance.sum().backward()
    assert distance.isfinite().all() and (distance > 0).all() and prediction.grad.isfinite().all()


def test_grey_images_are_repeated(ours):
    prediction, target = images(channels=1)
    repeated = [image.repeat(1, 3, 1, 1) for image in (prediction, target)]
    assert torch.equal(ours(prediction, target), ours(*repeated))


def test_levels(ours):
    levels = ours.encoder(images()[0])
    shapes = {name: tuple(level.shape[1:]) for name, level in levels.items()}
    assert tuple(levels) == LPIPS.feature_names
    assert shapes == {
        "relu1_2": (40 * 48, 64),
        "relu2_2": (20 * 24, 128),
        "relu3_3": (10 * 12, 256),
        "relu4_3": (5 * 6, 512),
        "relu5_3": (2 * 3, 512),
    }


def test_levels_are_outputs_of_torchvisions_layers(ours):
    """Bit for bit, in both modes and of copies; compilation rounds gradients otherwise."""
    from torchvision.models import vgg16

    encoder = ours.encoder
    with torch.device("meta"):
        layers = vgg16(init_weights=False).features
    layers.to_empty(device="cpu").load_state_dict(encoder.layers.state_dict())
    layers.requires_grad_(False)
    assert list(encoder.state_dict()) == [f"layers.{name}" for name in layers.state_dict()]

    def by_hand(x):
        maps, taken = (x - encoder.mean) / encoder.std, {}
        for number, layer in enumerate(layers):
            maps = layer(maps)
            if number in TAPS:
                taken[TAPS[number]] = unit_features(maps) * getattr(encoder, f"root_{TAPS[number]}")
        return taken

    def with_gradient(run):
        x = images()[0].requires_grad_()
        levels = run(x)
        return levels, torch.autograd.grad(sum(level.square().mean() for level in levels.values()), x)[0]

    expected, gradient = with_gradient(by_hand)
    for mode in (True, False):
        copied = copy.deepcopy(encoder).train(mode)
        for run in (copied, copy.deepcopy(copied)):
            found, own_gradient = with_gradient(run)
            assert list(found) == list(expected) and own_gradient.equal(gradient)
            assert all(found[name].equal(level) for name, level in expected.items())
    found, own_gradient = with_gradient(torch.compile(encoder, fullgraph=True, backend="aot_eager"))
    assert all(found[name].equal(level) for name, level in expected.items())
    assert torch.allclose(own_gradient, gradient, rtol=0, atol=1e-5 * gradient.abs().max())


def test_is_counted_on_the_meta_device(monkeypatch):
    """Two or three convolutions a level, of the channels and sides that the levels have."""
    monkeypatch.setattr(flops, "_registered", {"aten::max_pool2d": None})
    with torch.device("meta"):
        encoder = LPIPS("nowhere.pth")
    found = flops.count_encoder(encoder, (3, 32, 32))
    levels = {32: (3, 64, 64), 16: (64, 128, 128), 8: (128, *[256] * 3), 4: (256, *[512] * 3), 2: (512, *[512] * 3)}
    by_hand = 0
    for side, channels in levels.items():
        by_hand += sum(side**2 * 9 * before * after for before, after in itertools.pairwise(channels))
    assert found.generator_macs == found.by_component["layers"] == by_hand
    assert found.by_component["layers.2"] == 32**2 * 9 * 64**2 and found.generator_params == 14_714_688


def test_without_weights():
    encoder = LPIPS()
    assert not encoder.has_weights and sum(parameter.numel() for parameter in encoder.parameters()) == 14_714_688
    with pytest.raises(UserError, match=r"^LPIPS has no weights: set weights: to a local file$"):
        encoder(images()[0])


def test_on_the_meta_device_the_file_is_not_read():
    with torch.device("meta"):
        encoder = LPIPS("nowhere.pth")
    assert encoder.has_weights
    assert encoder(torch.zeros(1, 3, 32, 32, device="meta"))["relu5_3"].shape == (1, 4, 512)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError) as caught:
        LPIPS()
    assert str(caught.value) == "this feature needs the package 'lpips': pip install \"genflow[perceptual]\""
