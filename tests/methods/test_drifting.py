"""Drifting: micro-batches, what encoders and the network see, refusals."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genflow.backbones import DiT, LightningDiT
from genflow.codecs.base import Codec
from genflow.config.sections import TrainSection
from genflow.data.sample_queue import QueueSection, widened
from genflow.draws import Draws
from genflow.engine.loop import AutocastOptimWrapper, TrainingDiverged, UpdateLoop
from genflow.engine.signals import StopRequest
from genflow.engine.watchdog import Watchdog
from genflow.feature_encoders.base import FeatureEncoder
from genflow.field_estimators import DriftingField, SinkhornField
from genflow.guidance import NegativeMixing
from genflow.methods import Drifting

CLASSES, BATCH, LABELS, GENERATED, POSITIVES, NEGATIVES = 5, 8, 3, 4, 6, 2
SHAPE = (2, 4, 4)
CODEBOOKS, ENTRIES = 3, 7


class Halving(Codec):
    """Samples are twice what is stored, images a quarter of samples."""

    latent_shape = SHAPE

    def normalize(self, latents):
        return 2 * latents

    def decode(self, samples):
        return samples / 4


class Cells(FeatureEncoder):
    """Linear features of every cell of 2 x 2 pixels; remembers what it was given."""

    def __init__(self, space="images", name="cells"):
        super().__init__()
        self.space = space
        self.feature_names = (name,)
        self.weight = nn.Parameter(torch.randn(3, SHAPE[0], 2, 2, generator=torch.Generator().manual_seed(0)))
        self.given = []

    def forward(self, images):
        self.given.append(images.detach())
        return {self.feature_names[0]: nn.functional.conv2d(images, self.weight, stride=2).flatten(2).mT}


def build(num_classes=CLASSES, guided=True, backbone=None, encoders=None, field=None, **options):
    """A small method whose network has random weights in the place of its zeros."""
    torch.manual_seed(0)
    if backbone is None:
        backbone = LightningDiT(
            SHAPE[1],
            2,
            16,
            1,
            2,
            SHAPE[0],
            num_classes,
            context_tokens=1,
            style_codebooks=CODEBOOKS,
            style_entries=ENTRIES,
        )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    sizes = {"labels_per_update": LABELS, "samples_per_label": GENERATED, "positives": POSITIVES}
    return Drifting(
        backbone,
        DriftingField() if field is None else field,
        Halving(),
        encoders=[Cells()] if encoders is None else encoders,
        guidance=NegativeMixing(NEGATIVES) if guided else None,
        queue=QueueSection(per_class=16, overall=32),
        **{**sizes, **options},
    )


def batch(update=0, seed=0, rank=0, processes=1, classes=CLASSES):
    """A process's part of an update's images; the first number of an image is its class, the second its position."""
    share = BATCH // processes
    first = update * BATCH + rank * share
    draws = Draws(seed, torch.arange(first, first + share), BATCH)
    images = draws.normal("images", SHAPE)
    labels = draws.positions % classes
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels.float(), draws.positions.float()
    return {"images": images, "labels": labels, "draws": draws}


def prepared(method, updates=3, **options):
    """The rows of the last of some updates."""
    for update in range(updates):
        it = batch(update, **options)
        method.feed.push(it)
    return method.feed.rows(it)


def test_without_classes_and_guidance():
    method = build(num_classes=0, guided=False)
    rows = prepared(method)
    assert rows.keys() == {"images", "labels", "draws"}
    assert len(rows["images"][..., 0, 0, 0].unique()) > 1  # of any class
    weights = []
    method.field.register_forward_pre_hook(lambda _, given: weights.append(given[1]))
    terms = method(**rows)
    terms["loss"].backward()
    assert weights == [None]
    assert terms["loss"].isfinite() and method.backbone.output.weight.grad.any()
    assert method.generator.sample(rows["labels"], seed=0).shape == (LABELS, *SHAPE)


def update(method, micro_batches=1, precision="float32"):
    """Terms and gradients of one update through the loop."""
    optimizer = AutocastOptimWrapper(torch.optim.SGD(method.trained_parameters().values(), lr=0.0), precision, None)
    runner = SimpleNamespace(model=method, optim_wrapper=optimizer, stop=StopRequest(), watchdog=Watchdog(600))
    loop = UpdateLoop(runner, torch.utils.data.DataLoader([0]), TrainSection(1, micro_batches), seed=0)
    values = loop.update(batch())
    return values, {name: parameter.grad.clone() for name, parameter in method.trained_parameters().items()}


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_are_exact(micro_batches):
    terms, gradients = update(build(diagnostics=True))
    found, others = update(build(diagnostics=True), micro_batches)
    assert terms.keys() > {"coverage", "neighbours_0.2", "neighbours_0.05", "neighbours_0.02"}
    assert found == pytest.approx(terms, rel=1e-5)
    for name, value in gradients.items():
        assert value.any(), name
        assert (others[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_bfloat16_gradients_are_about_those_of_float32(micro_batches):
    _, expected = update(build())
    _, found = update(build(), micro_batches, "bfloat16")
    assert all(value.any() for value in found.values())
    ours, theirs = (torch.cat([value.flatten() for value in it.values()]) for it in (found, expected))
    assert nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_real_samples_are_encoded_once_and_generated_ones_for_each_mean():
    cells = Cells()
    method = build(encoders=[cells])
    update(method, micro_batches=3)
    generated = method.labels_per_update * method.samples_per_label
    real = method.labels_per_update * (method.positives + method.guidance.negatives)
    assert sum(len(images) for images in cells.given) == 3 * generated + real


def test_one_batch_has_its_own_means_unless_it_is_given_others():
    method, rows = build(), prepared(build())
    alone = method(**rows)["loss"]
    others = method.prepare([{name: value[:1] for name, value in rows.items()}] * 2)[0]["statistics"]
    assert method(**rows, statistics=others)["loss"] != alone
    assert method.prepare([rows]) == [rows]
    assert method(**rows)["loss"] == alone


def test_the_loss_is_the_sum_over_features():
    method, rows = build(encoders=[Cells(), Cells("samples", "more")]), prepared(build())
    drifts = []
    method.field.register_forward_hook(lambda *call: drifts.append(call[-1]))
    terms = method(**rows)
    assert [*drifts[0].losses] == ["global", "cells", "more"]
    total = sum(losses.mean() for losses in drifts[0].losses.values())
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    assert terms["drift"].item() == pytest.approx(total.item() / 3, rel=1e-6)
    forces = torch.stack([statistics.force for statistics in drifts[0].statistics.values()]).mean(dim=0)
    assert [terms[f"force_{value}"].item() for value in (0.2, 0.05, 0.02)] == pytest.approx(forces.tolist())
    only = build(encoders=[Cells()], compare_samples=False)
    only.field.register_forward_hook(lambda *call: drifts.append(call[-1]))
    only(**rows)
    assert [*drifts[1].losses] == ["cells"]


def test_encoders_see_images_or_samples():
    pixels, latents = Cells(), Cells("samples", "latent cells")
    method, made = build(encoders=[pixels, latents]), []
    method.backbone.register_forward_hook(lambda *call: made.append(call[-1]["main"].detach()))
    rows = prepared(method)
    method(**rows)
    stored = torch.cat([rows["images"].flatten(0, 1), rows["negatives"].flatten(0, 1)])
    samples = [2 * stored, made[0]]
    assert all(torch.equal(*pair) for pair in zip(latents.given, samples, strict=True))
    assert all(torch.equal(seen, it / 4) for seen, it in zip(pixels.given, samples, strict=True))


def test_no_gradient_reaches_encoders():
    method = build()
    assert "encoders.0.weight" not in method.trained_parameters()
    assert not any(name.startswith("encoders") for name in method.trained_state())
    method.train()
    assert not method.encoders[0].training
    before = method.encoders[0].weight.clone()
    update(method)
    assert method.encoders[0].weight.grad is None and torch.equal(method.encoders[0].weight, before)


def test_network_and_field_are_told_scale_and_style():
    method, conditions, weights = build(), [], []
    method.backbone.register_forward_pre_hook(lambda _, given: conditions.append(given[1]))
    method.field.register_forward_pre_hook(lambda _, given: weights.append(given[1]))
    rows = prepared(method)
    method(**rows)
    condition = conditions[0]
    scale = method.guidance.draw(rows["draws"])
    assert len(scale.unique()) == LABELS
    assert torch.equal(condition.labels, rows["labels"].repeat_interleave(GENERATED))
    assert torch.equal(condition.guidance, scale.repeat_interleave(GENERATED))
    assert condition.style.shape == (LABELS * GENERATED, CODEBOOKS)
    assert condition.style.min() >= 0 and condition.style.max() < ENTRIES
    assert len(condition.style.unique(dim=0)) > LABELS  # not one for each label
    generated, negative, positive = weights[0].split([GENERATED, NEGATIVES, POSITIVES], dim=1)
    assert torch.equal(generated, torch.ones_like(generated)) and torch.equal(positive, torch.ones_like(positive))
    expected = method.guidance.weight(scale, GENERATED).unsqueeze(1)
    assert torch.equal(negative, expected.expand(-1, NEGATIVES))


def test_a_network_that_wants_times_trains():
    method = build(backbone=DiT(SHAPE[1], 2, 16, 1, 2, SHAPE[0], num_classes=CLASSES), guided=False)
    method(**prepared(method))["loss"].backward()
    assert all(parameter.grad.any() for parameter in method.backbone.parameters())


class Broken(Cells):
    """An encoder one of whose features is not a number for generated samples."""

    def __init__(self):
        super().__init__()
        self.feature_names = ("cells", "roots")

    def forward(self, images):
        return super().forward(images) | {"roots": (images.flatten(1) - 1e3).sqrt().unsqueeze(1)}


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_feature_that_is_not_a_number_is_named(micro_batches):
    method = build(encoders=[Broken()])
    with pytest.raises(TrainingDiverged, match=r"update 1: not finite: .*; features: roots; first such gradient: "):
        update(method, micro_batches)
    method = build()
    assert method.diagnose([prepared(method)]) == ""


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="two encoders have a feature 'cells'"):
        build(encoders=[Cells(), Cells("samples")])
    with pytest.raises(ValueError, match="two encoders have a feature 'global'"):
        build(encoders=[Cells(name="global")])
    with pytest.raises(ValueError, match="guidance is drawn, but the DiT does not take any"):
        build(backbone=DiT(SHAPE[1], 2, 16, 1, 2, SHAPE[0], num_classes=CLASSES))
    with pytest.raises(ValueError, match="there is nothing to compare"):
        build(encoders=[], compare_samples=False)


def test_a_field_that_needs_two_samples_refuses_one():
    for field in (SinkhornField(), DriftingField(self_term="independent")):
        with pytest.raises(ValueError, match=f"samples_per_label is 1, a {type(field).__name__} needs 2"):
            build(field=field, samples_per_label=1)


def test_diagnostics_change_neither_loss_nor_gradients():
    (plain, without), (terms, gradients) = (update(build(diagnostics=it)) for it in (False, True))
    assert plain.items() <= terms.items() and not any(name.startswith(("cov", "neigh")) for name in plain)
    assert all(torch.equal(gradients[name], value) for name, value in without.items())


def test_queues_of_pixels_give_about_the_same_losses():
    """The device makes float32 of 8-bit samples."""
    method = build()
    rows = prepared(method)
    for name in ("images", "negatives"):
        rows[name] = rows[name].clamp(-1, 1)
    narrow = dict(rows)
    for name in ("images", "negatives"):
        narrow[name] = ((rows[name] + 1) * 127.5).round().byte()
    loss = method(**narrow)["loss"]
    assert loss == method(**{**rows, **{name: widened(narrow[name]) for name in ("images", "negatives")}})["loss"]
    assert loss.item() == pytest.approx(method(**rows)["loss"].item(), rel=0.01)
