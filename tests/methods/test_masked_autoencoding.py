"""Pre-training of the encoder of Drifting: masks, loss, the weight of the classes, and what a run leaves behind."""

import json
from pathlib import Path

import pytest
import torch

from genflow.codecs import Identity
from genflow.config.graph import ComponentGraph
from genflow.data import Digits
from genflow.draws import Draws
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.feature_encoders import LatentMAE
from genflow.feature_encoders.base import MaskedEncoder
from genflow.methods import MaskedAutoencoding
from genflow.methods.masked_autoencoding import ClassificationSection
from genflow.runs.folder import open_run

RECIPE = Path(__file__).parents[2] / "recipes" / "mae_digits.yaml"
TINY = {"model.encoder.width": 8, "model.encoder.depths": [1, 2], "model.encoder.norm_groups": 2}


def build(encoder=None, **settings):
    torch.manual_seed(0)
    encoder = encoder or LatentMAE(2, 8, 8, (1, 2), num_classes=5, decoder=True, norm_groups=2)
    return MaskedAutoencoding(encoder, Identity(8, 2), **settings)


def batch(count=6):
    images = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    return images, torch.arange(count) % 5, Draws(0, torch.arange(100 * count, 101 * count), count)


# The loss


@pytest.mark.parametrize(
    ("classification", "weight"),
    [(None, 0.0), (ClassificationSection(0.3, 0, 1), 0.3), (ClassificationSection(0.3, 40, 240), 0.3 * 60 / 240)],
)
def test_loss_by_hand(classification, weight):
    method = build(classification=classification)
    images, labels, draws = batch()
    terms = method(images, labels, draws)
    hidden = method.mask(draws)
    with torch.no_grad():
        filled, logits = method.encoder.reconstruct(images * (1 - hidden))
    errors, entropies = [], []
    for row in range(6):
        places = hidden[row, 0].nonzero().tolist()
        each = [(filled[row, :, i, j] - images[row, :, i, j]).square().sum().item() for i, j in places]
        errors.append(sum(each) / len(places))  # summed over channels, averaged over hidden patches
        entropies.append(-logits[row].log_softmax(0)[labels[row]].item())
    mean_error, mean_entropy = sum(errors) / 6, sum(entropies) / 6
    assert terms["reconstruction"].item() == pytest.approx(mean_error, rel=1e-5)
    assert terms["classification"].item() == pytest.approx(mean_entropy, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(weight * mean_entropy + (1 - weight) * mean_error, rel=1e-5)
    assert terms["accuracy"].item() == (logits.argmax(dim=1) == labels).float().mean().item()
    assert terms["mask_share"].item() == hidden.mean().item()
    assert [name for name, value in terms.items() if value.requires_grad] == ["loss"]


@pytest.mark.parametrize("patch_size", [1, 2])
def test_hidden_patches_are_not_seen(patch_size):
    """Whatever lies in them, the logits stay, and the error is that of the same reconstruction."""
    encoder = LatentMAE(2, 8, 8, (1, 2), patch_size, num_classes=5, decoder=True, norm_groups=2)
    method = build(encoder)
    images, labels, draws = batch()
    hidden = method.mask(draws)
    pixels = hidden.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    seen = []
    encoder.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    first, second = (method(x, labels, draws) for x in (images, images + 5 * pixels))
    assert torch.equal(*seen) and first["classification"] == second["classification"]
    assert second["reconstruction"] > 10 * first["reconstruction"]
    changed = method(images + 0.5 * (1 - pixels), labels, draws)
    assert changed["classification"] != first["classification"]


def test_nothing_hidden_costs_nothing():
    terms = build(mask_share=(0.0, 0.0))(*batch())
    assert terms["loss"].item() == terms["mask_share"].item() == 0
    assert build(mask_share=(1.0, 1.0))(*batch())["mask_share"].item() == 1


def test_target_is_normalised_by_the_codec():
    class Halving(Identity):
        def normalize(self, latents):
            return latents / 2

    images, labels, draws = batch()
    method = build()
    halved = MaskedAutoencoding(method.encoder, Halving(8, 2))
    assert halved(images, labels, draws)["loss"] == method(images / 2, labels, draws)["loss"]


@pytest.mark.parametrize("classification", [None, ClassificationSection(0.1, 0, 1)])
def test_gradient_reaches_every_parameter(classification):
    method = build(classification=classification)
    method(*batch())["loss"].backward()
    for name, value in method.trained_parameters().items():
        idle = classification is None and "classifier" in name
        assert value.grad.any() != idle, name


# Masks and the weight of the classes


def test_squares_are_hidden_together_at_the_share_asked_for():
    method = build(mask_share=(0.25, 0.25))
    hidden = method.mask(Draws(1, torch.arange(4000)))
    assert hidden.shape == (4000, 1, 8, 8) and set(hidden.unique().tolist()) == {0.0, 1.0}
    cells = hidden.unflatten(3, (4, 2)).unflatten(2, (4, 2))
    assert torch.equal(cells, cells[:, :, :, :1, :, :1].expand_as(cells))
    squares = cells[:, 0, :, 0, :, 0]
    assert squares.mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.allclose(squares.mean(dim=0), torch.tensor(0.25), atol=0.04)  # alike at all places
    assert squares.flatten(1).sum(dim=1).var().item() == pytest.approx(16 * 0.25 * 0.75, rel=0.1)  # independent
    assert build(mask_cell=4).mask(Draws(1, torch.arange(2)))[0, 0, :4, :4].unique().numel() == 1


def test_every_sample_draws_its_own_share():
    """The number of hidden squares has the variance of the shares on top."""
    squares = build(mask_share=(0.2, 0.8), mask_cell=1).mask(Draws(1, torch.arange(4000))).flatten(1)
    shares = squares.mean(dim=1)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    within = (0.25 - 0.6**2 / 12) / 64
    assert shares.var().item() == pytest.approx(0.6**2 / 12 + within, rel=0.1)


def test_masks_depend_on_the_sample_alone():
    method, draws = build(), batch()[2]
    whole = method.mask(draws)
    assert torch.equal(torch.cat([method.mask(draws[:2]), method.mask(draws[2:])]), whole)
    assert not torch.equal(method.mask(Draws(1, draws.positions, 6)), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 6


def test_micro_batches_add_up_to_the_batch():
    method = build(classification=ClassificationSection(0.3, 90, 100))
    images, labels, draws = batch()
    whole = method(images, labels, draws)
    parts = [method(images[part], labels[part], draws[part]) for part in (slice(0, 3), slice(3, 6))]
    for name, value in whole.items():
        assert sum(part[name].item() for part in parts) / 2 == pytest.approx(value.item(), rel=1e-5), name


def test_weight_of_the_classes():
    """Zero before and at the start, then linear, then constant; the same for all samples of an update."""
    method = build(classification=ClassificationSection(0.2, start=10, ramp=5))
    expected = {0: 0.0, 9: 0.0, 10: 0.0, 11: 0.04, 13: 0.12, 15: 0.2, 1000: 0.2}
    for update, weight in expected.items():
        found = method.classification_weight(Draws(0, update * 4 + torch.arange(4), 4))
        assert torch.allclose(found, torch.full((4,), weight)), update
    half = Draws(0, 13 * 4 + torch.arange(2, 4), 4)  # another process's rows
    assert torch.allclose(method.classification_weight(half), torch.tensor(0.12))
    assert not build().classification_weight(Draws(0, torch.arange(8), 4)).any()


# What is refused


class Plain(MaskedEncoder):
    image_shape, patch_shape = (2, 8, 8), (2, 6, 6)


@pytest.mark.parametrize(
    ("encoder", "settings", "problem"),
    [
        (LatentMAE(1, 8, 8, (1,)), {}, "the codec's latents are (2, 8, 8), the encoder takes (1, 8, 8)"),
        (Plain(), {"mask_cell": 4}, "mask_cell 4 does not divide the encoder's 6x6 patches"),
        (Plain(), {"classification": ClassificationSection()}, "Plain does not classify"),
        (Plain(), {"mask_share": (0.5, 0.4)}, "mask_share has 0.5 before 0.4, expected the smaller one first"),
    ],
)
def test_refused_settings(encoder, settings, problem):
    with pytest.raises(ValueError) as caught:
        build(encoder, **settings)
    assert str(caught.value) == problem


def test_an_encoder_without_classifier_needs_no_labels():
    method = build(LatentMAE(2, 8, 8, (1, 2), num_classes=0, decoder=True, norm_groups=2))
    images, labels, draws = batch()
    terms = method(images, labels, draws)
    assert set(terms) == {"loss", "reconstruction", "mask_share"} and method.num_classes == 0
    assert terms["loss"].item() == terms["reconstruction"].item()
    assert build().num_classes == 5 and build().image_shape == (2, 8, 8) and build().generator is None


# Runs


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_leaves_an_encoder_without_decoder(tmp_path, precision):
    settings = {"train_cfg.max_iters": 30, "optim_wrapper.precision": precision, "param_scheduler": [], **TINY}
    classification = {"model.classification": {"weight": 0.1, "start": 10, "ramp": 10}}
    work_dir = train(RECIPE, settings | classification, None, TrainOptions(tmp_path / "encoder"))
    lines = [json.loads(line) for line in (work_dir / "scalars.jsonl").read_text().splitlines()]
    first, last = ([line["reconstruction"] for line in part] for part in (lines[:5], lines[-5:]))
    assert sum(last) < 0.7 * sum(first)
    for line in lines:  # the law of the weight, seen from outside
        weight = 0.1 * min(max(line["step"] - 1 - 10, 0) / 10, 1)
        expected = weight * line["classification"] + (1 - weight) * line["reconstruction"]
        assert line["loss"] == pytest.approx(expected, rel=1e-3)
    trained = open_run(work_dir)
    names = set(trained.weights())
    assert not [name for name in names if "decoder" in name]
    assert {"stem.conv.weight", "stages.1.0.shortcut.norm.bias", "stage_norms.1.weight", "classifier.bias"} <= names
    encoder = trained.method().encoder
    features = encoder(Digits("test").images[:4])
    assert tuple(features) == encoder.feature_names and encoder.decoder is None
    assert all(value.isfinite().all() for value in features.values())
    assert trained.graph.build_artifact(trained.weights()).decoder is None
    with pytest.raises(UserError, match="MaskedAutoencoding trains no generator"):
        trained.generator()


def test_another_recipe_gets_the_encoder(tmp_path):
    """As a prerequisite, whose features a loss compares; the decoder is not built."""
    settings = {"train_cfg.max_iters": 1, **TINY}
    work_dir = train(RECIPE, settings, None, TrainOptions(tmp_path / "encoder"))
    user = {
        "prerequisites": {"encoder": str(work_dir / "recipe.yaml")},
        "model.perceptual": {
            "crop": None,
            "terms": {"mae": {"loss": {"type": "FeatureDistance", "encoder": "$encoder"}}},
        },
    }
    graph = ComponentGraph.load(RECIPE.parent / "pmf_digits.yaml", user)
    distance = graph.build(lambda name: open_run(work_dir).weights()).perceptual.losses["mae"]
    images = Digits("test").images
    trained = open_run(work_dir).method().encoder
    for name, value in distance.encoder(images[:3]).items():
        assert torch.equal(value, trained(images[:3])[name])
    assert (distance(images[:3], images[3:6]) > 0).all() and distance.encoder.decoder is None


def test_other_encoders_are_refused():
    encoder = {"type": "ConvNet", "channels": 1, "widths": [4], "num_classes": 10}
    codec = {"type": "Identity", "image_size": 8, "channels": 1}
    with pytest.raises(UserError, match=r"model\.encoder\.type: found 'ConvNet', expected a MaskedEncoder"):
        ComponentGraph.from_recipe({"model": {"type": "MaskedAutoencoding", "encoder": encoder, "codec": codec}})
