"""Flow matching: its loss by hand, the labels it drops, and that it learns a distribution."""

import pytest
import torch

from genflow.backbones import MLP
from genflow.codecs import Identity
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.field_estimators import InstantaneousVelocity
from genflow.losses import SquaredError
from genflow.methods import FlowMatching
from genflow.time_samplers import LogitNormalTimes

CLASSES = 3


def make_method(prediction="x", num_classes=CLASSES, width=32, layers=3, mean=0.0, **options):
    torch.manual_seed(0)
    backbone = MLP(1, 2, width, layers, num_classes)
    times = LogitNormalTimes(mean, 1.0, region="r_equals_t")
    return FlowMatching(
        backbone, InstantaneousVelocity(prediction), times, Identity(1, 2), SquaredError("mean"), **options
    )


def batch_of(size=64):
    draws = Draws(0, torch.arange(size))
    return draws.normal("points", (2, 1, 1)), torch.arange(size) % CLASSES, draws


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_loss_by_hand(prediction):
    method = make_method(prediction, noise_scale=2.0, label_drop=0.0)
    images, labels, draws = batch_of()
    terms = method(images, labels, draws)
    t = torch.sigmoid(draws.normal("time t")).view(-1, 1, 1, 1)
    assert 0.05 < t.min() < 0.3 and t.max() > 0.7
    noise = 2 * draws.normal("noise", (2, 1, 1))
    z = (1 - t) * images + t * noise
    condition = Condition(labels=labels, time=t.flatten(), duration=torch.zeros(64))
    output = method.backbone(z, condition)["main"]
    velocity = (z - output) / t if prediction == "x" else output
    expected = (velocity - (noise - images)).square().mean()
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["velocity_error"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["loss"].requires_grad and not terms["velocity_error"].requires_grad


def test_no_division_by_tiny_times():
    """Below the floor prediction and target are shrunk alike."""
    images, labels, draws = batch_of()
    small = make_method(mean=-20.0, label_drop=0.0)(images, labels, draws)
    assert small["loss"] < 1e3


def test_labels_are_dropped_for_some_samples():
    method, seen = make_method(label_drop=0.25), []
    method.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1].labels))
    images, labels, draws = batch_of(4000)
    method(images, labels, draws)
    dropped = seen[0] == CLASSES
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(seen[0][~dropped], labels[~dropped])


def test_samples_have_the_loss_that_they_have_alone():
    method = make_method()
    images, labels, draws = batch_of(8)
    whole = method(images, labels, draws)["loss"]
    halves = [method(images[part], labels[part], draws[part])["loss"] for part in (slice(4), slice(4, 8))]
    assert whole.item() == pytest.approx(sum(halves).item() / 2, rel=1e-5)


def test_how_it_samples_is_no_matter_of_training():
    method, told = make_method(default_interval=(0.2, 0.6)), []
    method.backbone.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1].interval))
    loss = method(*batch_of())["loss"]
    method.generator.set_sampling(steps=3, interval=(0.4, 0.5))
    assert method(*batch_of())["loss"] == loss
    assert all(torch.allclose(interval, torch.tensor([[0.2, 0.6]])) for interval in told) and len(told) == 2


def test_backbone_and_codec_must_fit():
    with pytest.raises(ValueError, match=r"the codec's latents are \(3, 1, 1\), the backbone takes \(2, 1, 1\)"):
        FlowMatching(
            MLP(1, 2), InstantaneousVelocity(), LogitNormalTimes(0.0, 1.0), Identity(1, 3), SquaredError("mean")
        )


def test_learns_where_the_classes_lie():
    method = make_method(width=64, label_drop=0.5, steps=10)
    centres = torch.tensor([[-0.5, -0.5], [0.6, 0.0], [-0.3, 0.6]])
    optimizer = torch.optim.Adam(method.trained_parameters().values(), lr=5e-3)
    labels = torch.arange(126) % CLASSES
    for step in range(150):
        draws = Draws(0, torch.arange(126 * step, 126 * (step + 1)))
        optimizer.zero_grad()
        method(centres[labels].view(-1, 2, 1, 1), labels, draws)["loss"].backward()
        optimizer.step()
    found = method.generator.sample(labels, seed=1).flatten(1)
    assert (found - centres[labels]).norm(dim=1).mean() < 0.1
    anywhere = method.generator.sample(torch.full((126,), CLASSES), seed=1).flatten(1)
    distance, nearest = torch.cdist(anywhere, centres).min(dim=1)
    assert distance.median() < 0.15 and nearest.bincount(minlength=CLASSES).min() > 20
