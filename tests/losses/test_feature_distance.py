"""Distances of features: the formula, freezing, and which features are compared."""

import pytest
import torch
from torch import nn

from genflow.feature_encoders.base import FeatureEncoder
from genflow.losses import FeatureDistance


class Tiny(FeatureEncoder):
    """Two features of 4x4 images, one with 16 tokens, one with one; dropout would show training mode."""

    feature_names = ("points", "pooled")

    def __init__(self):
        super().__init__()
        self.points = nn.Conv2d(2, 5, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        tokens = self.dropout(self.points(images)).flatten(2).mT
        return {"points": tokens, "pooled": tokens.mean(dim=1, keepdim=True).exp()}


def images(count=3, seed=0):
    return torch.randn(2, count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_sum_over_channels_mean_over_tokens_sum_over_features():
    encoder = Tiny()
    prediction, target = images()
    found = FeatureDistance(encoder)(prediction, target)
    ours, theirs = encoder(prediction), encoder(target)
    for sample, distance in enumerate(found):
        points = sum(
            (ours["points"][sample, token] - theirs["points"][sample, token]).square().sum() for token in range(16)
        )
        pooled = (ours["pooled"][sample, 0] - theirs["pooled"][sample, 0]).square().sum()
        assert torch.allclose(distance, points / 16 + pooled)
    one = FeatureDistance(encoder, ["points"])(prediction, target)
    other = FeatureDistance(encoder, ["pooled"])(prediction, target)
    assert found.shape == (3,) and torch.allclose(one + other, found) and (one > 0).all() and (other > 0).all()
    assert not FeatureDistance(encoder)(target, target).any()


def test_encoder_is_frozen_and_stays_in_evaluation_mode():
    loss = FeatureDistance(Tiny().train())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not loss.encoder.dropout.training
    assert loss.train().training and not loss.encoder.dropout.training
    outer = nn.Sequential(loss).train()
    assert outer.training and not loss.encoder.training and not loss.encoder.dropout.training


def test_gradient_reaches_the_prediction_only():
    prediction, target = (image.clone().requires_grad_() for image in images())
    loss = FeatureDistance(Tiny())
    loss(prediction, target).sum().backward()
    assert (prediction.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert target.grad is None and all(parameter.grad is None for parameter in loss.parameters())


def test_differences_of_half_precision_features_are_computed_in_float32():
    class Half(Tiny):
        def forward(self, images):
            return {name: value.bfloat16() for name, value in super().forward(images).items()}

    encoder = Half()
    prediction, target = images()
    found = FeatureDistance(encoder, ["points"])(prediction, target)
    ours, theirs = (encoder(image)["points"].double() for image in (prediction, target))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), (ours - theirs).square().sum(dim=2).mean(dim=1), rtol=1e-6)


def test_unknown_features():
    with pytest.raises(ValueError) as caught:
        FeatureDistance(Tiny(), ["pooled", "point"])
    assert str(caught.value) == "Tiny has no feature 'point'; nearest match: 'points' (known: points, pooled)"
