"""The perceptual slot: one crop for a pair and all terms, gradients, and the section of a recipe (docs/pmf.md, P9)."""

import pytest
import torch
from torch import nn

from genflow.config import slots
from genflow.data.crops import crop_resize, draw_boxes
from genflow.draws import Draws
from genflow.feature_encoders import ConvNet
from genflow.losses import AdaptiveWeighting, FeatureDistance, SquaredError
from genflow.losses.base import Loss
from genflow.methods.perceptual import PerceptualLoss, PerceptualSection, PerceptualTerm


class Recording(Loss):
    """Keeps what it is given."""

    def forward(self, prediction, target):
        self.seen = prediction, target
        return (prediction - target).flatten(1).square().sum(dim=1)


def draws(count=4, seed=0):
    return Draws(seed, torch.arange(count))


def pair(count=4):
    return torch.randn(2, count, 3, 16, 20, generator=torch.Generator().manual_seed(0))


def recording(crop=8):
    terms = {"first": PerceptualTerm(Recording()), "second": PerceptualTerm(Recording(), weight=0.25)}
    return PerceptualLoss(PerceptualSection(terms, crop))


def features():
    torch.manual_seed(0)
    return FeatureDistance(ConvNet(3, [8, 8], num_classes=2))


@pytest.mark.parametrize("seed", range(5))
def test_identical_images_have_distance_zero(seed):
    image, _ = pair()
    module = PerceptualLoss(PerceptualSection({"features": PerceptualTerm(AdaptiveWeighting(features()))}, crop=8))
    found = module(image, image.clone(), draws(seed=seed))["features"]
    assert found.shape == (4,) and not found.any()
    assert (module(image, -image, draws(seed=seed))["features"] > 0).all()


def test_the_pair_and_all_terms_get_one_crop():
    prediction, target = pair()
    module = recording()
    terms = module(prediction, target, draws())
    boxes = draw_boxes(draws(), 16, 20)
    for loss in module.losses.values():
        for seen, image in zip(loss.seen, (prediction, target), strict=True):
            assert torch.equal(seen, crop_resize(image, boxes, 8))
    assert terms.keys() == {"first", "second"} and torch.equal(terms["second"], 0.25 * terms["first"])
    other = module(prediction, target, draws(seed=1))
    assert not torch.isclose(other["first"], terms["first"]).any()


def test_samples_do_not_depend_on_the_rest_of_the_batch():
    prediction, target = pair()
    module = recording()
    whole = module(prediction, target, draws())["first"]
    parts = [module(prediction[part], target[part], draws()[part])["first"] for part in (slice(0, 1), slice(1, 4))]
    assert torch.allclose(torch.cat(parts), whole)


def test_without_a_crop_the_images_are_compared_as_they_are():
    prediction, target = pair()
    module = recording(crop=None)
    module(prediction, target, draws())
    assert torch.equal(module.losses["first"].seen[0], prediction)
    assert torch.equal(module.losses["first"].seen[1], target)


@pytest.mark.parametrize("crop", [None, 8])
def test_gradient_reaches_what_made_the_prediction_and_not_the_target(crop):
    decoder = nn.Conv2d(3, 3, 1)
    latents, target = pair()
    target.requires_grad_()
    module = PerceptualLoss(PerceptualSection({"features": PerceptualTerm(features())}, crop)).train()
    module(decoder(latents), target, draws())["features"].sum().backward()
    assert decoder.weight.grad.abs().sum() > 0 and target.grad is None
    assert all(parameter.grad is None for parameter in module.parameters())


def test_crops_are_float32_under_autocast():
    prediction, target = pair()
    module = recording()
    expected = module(prediction, target, draws())["first"]
    with torch.autocast("cpu", torch.bfloat16):
        found = module(prediction, target, draws())["first"]
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    half = module(prediction.bfloat16(), target.bfloat16(), draws())["first"]
    assert module.losses["first"].seen[0].dtype == torch.float32
    assert torch.allclose(half, expected, rtol=0.02)


class Host(nn.Module):
    """A constructor with the slot, as methods have it."""

    kind = "method"

    def __init__(self, perceptual: PerceptualSection | None = None):
        super().__init__()
        self.perceptual = None if perceptual is None else PerceptualLoss(perceptual)


SECTION = {
    "crop": 8,
    "terms": {
        "features": {
            "loss": {"type": "AdaptiveWeighting", "loss": {"type": "FeatureDistance", "encoder": "$digits"}},
            "weight": 0.4,
        },
        "pixels": {"loss": {"type": "SquaredError"}},
    },
}


def build(section):
    annotation = slots.signature_of(Host)["perceptual"][0]
    encoder = ConvNet(3, [8], num_classes=2)

    def make(node):
        return node.cls(**{name: slots.build(value, make, resolve) for name, value in node.arguments.items()})

    def resolve(reference):
        assert (reference.name, reference.kind) == ("digits", "feature encoder")
        return encoder

    checked = slots.check(section, annotation, "model.perceptual")
    return Host(slots.build(checked, make, resolve)).perceptual, encoder, list(slots.walk(checked))


def test_a_recipe_fills_the_slot():
    module, encoder, nodes = build(SECTION)
    assert [node.path for node in nodes] == [
        "model.perceptual.terms.features.loss",
        "model.perceptual.terms.pixels.loss",
    ]
    assert module.crop == 8 and module.losses["features"].loss.encoder is encoder
    prediction, target = pair()
    found = module(prediction, target, draws())
    cropped = [crop_resize(image, draw_boxes(draws(), 16, 20), 8) for image in (prediction, target)]
    assert torch.allclose(found["features"], 0.4 * AdaptiveWeighting(FeatureDistance(encoder))(*cropped))
    assert torch.allclose(found["pixels"], SquaredError()(*cropped))
    assert build(None)[0] is None
    terms = SECTION["terms"]
    assert build({"terms": terms})[0].crop == 224 and build({"terms": terms, "crop": None})[0].crop is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "crop: found 0, expected an integer of at least 1 or null"),
        ({"corp": 8}, "corp: unknown key; nearest match: 'crop'"),
        ({"terms": {}}, "terms: found {}, expected a mapping that is not empty"),
        ({"terms": {"a": {"weight": 1.0}}}, "terms.a.loss: missing, model.perceptual.terms.a needs it (a loss)"),
        ({"terms": {"a": {"loss": "$x", "weight": -1}}}, "terms.a.weight: found -1, expected a number of at least 0"),
    ],
)
def test_mistakes_in_the_section(change, message):
    with pytest.raises(slots.Mismatch) as caught:
        build(SECTION | change)
    assert str(caught.value) == f"model.perceptual.{message}"
