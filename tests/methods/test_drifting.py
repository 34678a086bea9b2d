"""Drifting: the rows of an update, micro-batches, what encoders and the network see, refusals."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genflow.backbones import DiT, LightningDiT
from genflow.codecs.base import Codec
from genflow.data.sample_queue import QueueSection
from genflow.draws import Draws
from genflow.engine.loop import AutocastOptimWrapper, TrainingDiverged, UpdateLoop
from genflow.errors import UserError
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
        rows = method.prepare(batch(update, **options))
    return rows


def test_rows_of_an_update():
    rows = prepared(build())
    labels = rows["labels"]
    assert rows["images"].shape == (LABELS, POSITIVES, *SHAPE)
    assert rows["negatives"].shape == (LABELS, NEGATIVES, *SHAPE)
    assert torch.equal(rows["images"][..., 0, 0, 0], labels.float().unsqueeze(1).expand(-1, POSITIVES))
    seen = rows["images"][..., 0, 0, 1]
    assert 16 <= seen.max() < 24 and seen.min() < 8  # of this update and of past ones
    assert len(rows["draws"]) == LABELS == rows["draws"].batch_size
    assert rows["draws"].positions.tolist() == [6, 7, 8]  # the third update's


def test_labels_are_those_of_different_images_of_the_batch():
    method, chosen = build(labels_per_update=BATCH), []
    for update in range(3):
        it = batch(update, classes=BATCH - 3)
        labels = method.prepare(it)["labels"]
        assert sorted(labels.tolist()) == sorted(it["labels"].tolist())
    method = build(num_classes=BATCH)
    for update in range(100):
        labels = method.prepare(batch(update, classes=BATCH))["labels"]
        assert len(labels.unique()) == LABELS
        chosen.append(labels)
    share = torch.bincount(torch.cat(chosen), minlength=BATCH) / (100 * LABELS)
    assert (share - 1 / BATCH).abs().max() < 0.05


def test_rows_are_a_function_of_seed_update_and_rank():
    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in ("images", "labels", "negatives"))

    rows = prepared(build())
    assert same(rows, prepared(build()))
    assert not same(rows, prepared(build(), seed=1))
    assert not same(rows, prepared(build(), updates=4))
    one, other = (prepared(build(labels_per_update=4), rank=rank, processes=2) for rank in range(2))
    assert [it["draws"].positions.tolist() for it in (one, other)] == [[8, 9], [10, 11]]
    assert one["draws"].batch_size == 4
    own = [it["images"][..., 0, 0, 1] % BATCH for it in (one, other)]
    assert own[0].max() < 4 <= own[1].min()  # every process has its own queue


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
    runner = SimpleNamespace(model=method, optim_wrapper=optimizer)
    loop = UpdateLoop(runner, torch.utils.data.DataLoader([0]), 1, micro_batches, seed=0)
    values = loop.update(batch())
    return values, {name: parameter.grad.clone() for name, parameter in method.trained_parameters().items()}


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_are_exact(micro_batches):
    terms, gradients = update(build())
    found, others = update(build(), micro_batches)
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


def test_one_batch_after_micro_batches_has_its_own_means():
    method, rows = build(), prepared(build())
    alone = method(**rows)["loss"]
    method.survey([{name: value[:1] for name, value in rows.items()}] * 2)
    assert method(**rows)["loss"] != alone
    method.survey([rows])
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
    assert build().diagnose() == ""


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="two encoders have a feature 'cells'"):
        build(encoders=[Cells(), Cells("samples")])
    with pytest.raises(ValueError, match="two encoders have a feature 'global'"):
        build(encoders=[Cells(name="global")])
    with pytest.raises(ValueError, match="guidance is drawn, but the DiT is not told any"):
        build(backbone=DiT(SHAPE[1], 2, 16, 1, 2, SHAPE[0], num_classes=CLASSES))


def test_batches_that_do_not_fit_are_refused():
    build(labels_per_update=8).check_batch(8, 4)
    with pytest.raises(UserError, match=r"model\.labels_per_update: found 8, expected at most .*batch_size, 7"):
        build(labels_per_update=8).check_batch(7, 1)
    with pytest.raises(UserError, match=r"model\.labels_per_update: found 3, expected a multiple of the 2 processes"):
        build().check_batch(8, 2)
    with pytest.raises(UserError, match="there is nothing to compare"):
        build(encoders=[], compare_samples=False).check_batch(8, 1)


def test_a_field_that_needs_two_samples_refuses_one():
    with pytest.raises(ValueError, match="samples_per_label is 1, a SinkhornField needs 2"):
        build(field=SinkhornField(), samples_per_label=1)


def test_a_batch_that_comes_again_is_pushed_once():
    """A run that goes on after it diverged prepares the failed update a second time."""
    method = build()
    prepared(method)
    before = {name: value.clone() for name, value in method.process_state().items()}
    again = build()
    again.load_process_state({name: value.clone() for name, value in before.items()})
    again.prepare(batch(2))
    after = again.process_state()
    assert all(torch.equal(after[name], value) for name, value in before.items())
