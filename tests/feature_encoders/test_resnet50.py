"""ResNet-50: the same maps as torchvision's network, the names of weight files, and what is refused."""

import pytest
import torch

from genflow.errors import UserError
from genflow.feature_encoders import ResNet50
from genflow.feature_encoders.pooling import pooled_features
from genflow.weights import write_weights


@pytest.fixture(scope="module")
def theirs():
    """Torchvision's network with random statistics of batch norms."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50(weights=None, num_classes=7).eval()
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(3)
    return network


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "plain.pth"
    torch.save(theirs.state_dict(), path)
    return path


def images(side=64, channels=3):
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_equals_torchvision(theirs, weights):
    found = ResNet50(str(weights), 64)(images())
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = ((images() + 1) / 2 - mean) / std
    maps = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(maps))))
    expected = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        maps = getattr(theirs, name)(maps)
        expected |= pooled_features(f"resnet_{name}", maps)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-5 * value.abs().max().item()), name


@torch.no_grad()
@pytest.mark.parametrize("sort", ["moco", "safetensors", "without counts"])
def test_weight_files(theirs, weights, tmp_path, sort):
    state, path = theirs.state_dict(), tmp_path / "other.pth"
    if sort == "moco":
        state = {f"module.encoder_q.{name}": value for name, value in state.items()}
        state |= {name.replace("_q.", "_k."): torch.zeros_like(value) for name, value in state.items()}
        state |= {"module.encoder_q.fc.0.weight": torch.ones(3, 3), "module.queue": torch.ones(128, 5)}
    if sort == "without counts":
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if sort == "safetensors":
        path = tmp_path / "other.safetensors"
        write_weights(path, state)
    else:
        torch.save(state, path)
    first, second = (ResNet50(str(file), 64)(images())["resnet_layer4"] for file in (weights, path))
    assert torch.equal(first, second)


@torch.no_grad()
def test_it_never_uses_the_statistics_of_a_batch(weights):
    encoder = ResNet50(str(weights), 64).train()
    whole = encoder(images())["resnet_layer2"]
    assert not encoder.network.bn1.training
    alone = encoder(images()[1:])["resnet_layer2"]
    assert torch.allclose(alone, whole[1:], rtol=0, atol=1e-5 * whole.abs().max().item())


@torch.no_grad()
def test_images_are_resized_and_grey_ones_repeated(weights):
    encoder = ResNet50(str(weights), 64, windows=(2,), pooled=False)
    found = encoder(images(96, 1))
    assert tuple(found) == encoder.feature_names
    assert found["resnet_layer1"].shape == (2, 256, 256) and found["resnet_layer3_std_2"].shape == (2, 4, 1024)
    repeated = encoder(images(96, 1).repeat(1, 3, 1, 1))
    assert all(torch.equal(found[name], value) for name, value in repeated.items())


@pytest.mark.parametrize("side", [256, 224, 72])
def test_names_are_those_of_what_comes_out(side):
    with torch.device("meta"):
        encoder = ResNet50("nowhere.pth", side)
        found = encoder(torch.zeros(1, 3, 32, 32))
    assert tuple(found) == encoder.feature_names
    assert found["resnet_layer4"].shape == (1, (-(-side // 32)) ** 2, 2048)
    assert ("resnet_layer4_mean_4" in found) == (side == 256)
    assert sum(value.numel() for value in encoder.parameters()) == 23_508_032


def test_gradient_reaches_the_images(weights):
    encoder = ResNet50(str(weights), 64).requires_grad_(False)
    x = images().requires_grad_()
    sum(value.square().mean() for value in encoder(x).values()).backward()
    assert x.grad.isfinite().all() and x.grad.any()


def test_what_is_refused(theirs, tmp_path):
    with pytest.raises(UserError, match=r"^ResNet50 has no weights: set weights: to a local file$"):
        ResNet50()(images())
    state = theirs.state_dict()
    changes = {
        "'layer1.0.conv1.weight' is missing from the file": {"layer1.0.conv1.weight": None},
        "'conv1.weight' has shape (64, 3, 3, 3), expected (64, 3, 7, 7)": {"conv1.weight": torch.ones(64, 3, 3, 3)},
        "'layer5.0.weight' is not in the model": {"layer5.0.weight": torch.ones(1)},
    }
    for problem, change in changes.items():
        path = tmp_path / "wrong.pth"
        torch.save({name: value for name, value in (state | change).items() if value is not None}, path)
        with pytest.raises(UserError) as caught:
            ResNet50(str(path))
        assert str(caught.value) == f"{path}: {problem}"
