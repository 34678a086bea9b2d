"""The small classifier: features, logits, and no interplay of samples."""

import torch

from genflow.feature_encoders import ConvNet
from genflow.losses import FeatureDistance


def encoder():
    torch.manual_seed(0)
    return ConvNet(1, [8, 16, 12], num_classes=10)


def images(count=4):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_features():
    found = encoder()(images())
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "stage_0": (4, 64, 8),
        "stage_1": (4, 16, 16),
        "stage_2": (4, 4, 12),
        "pooled": (4, 1, 12),
    }
    assert tuple(found) == encoder().feature_names
    for name in ("stage_0", "stage_1", "stage_2"):
        assert torch.allclose(found[name].square().sum(dim=2), torch.ones(1))


@torch.no_grad()
def test_logits_are_a_linear_map_of_the_pooled_feature():
    net = encoder()
    pooled = net(images())["pooled"][:, 0]
    assert torch.allclose(net.classify(images()), pooled @ net.classifier.weight.T + net.classifier.bias)
    assert net.classify(images()).shape == (4, 10)


@torch.no_grad()
def test_samples_do_not_interact_and_modes_agree():
    net = encoder().train()
    whole = net.classify(images())
    assert torch.allclose(torch.cat([net.classify(part) for part in images().split(1)]), whole, atol=1e-6)
    assert torch.equal(net.eval().classify(images()), whole)


def test_it_learns_and_then_serves_as_an_encoder():
    net = encoder()
    labels = torch.arange(4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(net.classify(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    distance = FeatureDistance(net)
    prediction = (images() + 0.1).requires_grad_()
    found = distance(prediction, images())
    found.sum().backward()
    assert (found > 0).all() and prediction.grad.isfinite().all() and prediction.grad.any()
    assert not distance(images(), images()).any()


def test_gradient_is_finite_on_a_constant_image():
    constant = torch.zeros(2, 1, 8, 8, requires_grad=True)
    FeatureDistance(encoder())(constant, images(2)).sum().backward()
    assert constant.grad.isfinite().all()
