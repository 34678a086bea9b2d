"""Inception and timm's models as extractors: their networks, sizes, and what is refused."""

import sys

import pytest
import torch

from genflow.errors import UserError
from genflow.evaluation.inception import inception_input
from genflow.feature_encoders import Inception, TimmFeatures
from genflow.feature_encoders.base import without_weights


@pytest.fixture(scope="module")
def network():
    """torch-fidelity's network with random weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Unloaded(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments, **options):
            pass

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *arguments, **options: {})
        made = Unloaded("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path="none")
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made.eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@torch.no_grad()
def test_features_and_logits_are_torch_fidelitys(network, weights):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features, logits = network(pixels)
    encoder, images = Inception(weights), pixels.float() / 127.5 - 1
    assert torch.allclose(encoder(images)["pooled"].squeeze(1), features, rtol=1e-5, atol=1e-6)
    assert torch.allclose(encoder.classify(images), logits, rtol=1e-5, atol=1e-6)
    grey = images[:, :1]
    assert torch.equal(encoder(grey)["pooled"], encoder(grey.expand(-1, 3, -1, -1))["pooled"])


@torch.no_grad()
def test_the_other_resize_is_between_centres(network, weights):
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    encoder = Inception(weights, resize="half_pixel")
    expected = encoder.layers(inception_input(pixels)).flatten(1)
    assert torch.allclose(encoder(pixels.float() / 127.5 - 1)["pooled"].squeeze(1), expected, rtol=1e-5, atol=1e-6)


def test_files_that_are_not_its_weights(network, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    for path, problem in (
        (tmp_path / "other.pth", "weights of Inception: "),
        ("nowhere", "there is no file 'nowhere'"),
    ):
        with pytest.raises(UserError, match=problem):
            Inception(str(path))


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r'needs the package \'torch-fidelity\': pip install "genflow\[fid\]"'):
        Inception()


@torch.no_grad()
@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224"])
def test_models_of_timm_from_a_file(model, tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    encoder = TimmFeatures(model, str(tmp_path / "weights.pt"), image_size=64)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    pooled = encoder(images)["pooled"]
    config = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    own = network
    if model.startswith("vit"):
        own = timm.create_model(model, pretrained=False, img_size=64, num_classes=0).eval()
        own.load_state_dict(encoder.network.state_dict())
        assert not torch.equal(own.pos_embed[:, :9], network.pos_embed[:, :9]) and own.pos_embed.std() > 0
    expected = own.forward_head(own.forward_features(((images + 1) / 2 - mean) / std), pre_logits=True)
    assert pooled.shape == (2, 1, expected.shape[1]) and torch.allclose(pooled.squeeze(1), expected, atol=1e-5)
    assert encoder(torch.rand(1, 1, 20, 20))["pooled"].isfinite().all()


def test_unknown_models_and_foreign_weights(tmp_path):
    with pytest.raises(UserError, match="found 'resnet10x', expected a model of timm; nearest match: 'resnet1"):
        TimmFeatures("resnet10x")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError):
        TimmFeatures("resnet10t", str(tmp_path / "other.pt"))


def test_a_generator_trains_on_features_without_rounding_only(network, weights):
    images = (torch.rand(1, 3, 32, 32) * 2.2 - 1.1).requires_grad_()
    with pytest.raises(ValueError, match="rounds images, which has no derivative; for training there is rounded: fal"):
        Inception(weights)(images)
    encoder = Inception(weights, rounded=False)
    encoder(images)["pooled"].square().sum().backward()
    assert (images.grad != 0).float().mean() > 0.5  # the resize takes every pixel
    whole = torch.randint(0, 256, (1, 3, 32, 32)) / 127.5 - 1
    with torch.no_grad():
        expected = Inception(weights)(whole)["pooled"]
        torch.testing.assert_close(encoder(whole)["pooled"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [Inception, lambda: TimmFeatures("vit_tiny_patch16_224")], ids=["Inception", "timm"])
def test_on_the_meta_device_weights_are_yet_to_be_fetched(make, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "/nowhere")

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with torch.device("meta"):
        encoder = make()
    assert not encoder.has_weights
    assert encoder(torch.empty(2, 3, 64, 64, device="meta"))["pooled"].shape[:2] == (2, 1)
    encoder.fetch()
    assert not encoder.has_weights and "no network" in encoder.weights_hint
    with pytest.raises(UserError, match="no network"):
        make()
    with without_weights():
        encoder = make()
    assert not encoder.has_weights and not next(encoder.parameters()).is_meta
