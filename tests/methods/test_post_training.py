"""Post-training: parts and processes that change nothing, Drifting as a special case, held-out distances, refusals."""

import itertools
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch import nn

from genflow.backbones import DiT, LightningDiT
from genflow.codecs import Identity
from genflow.config.graph import ComponentGraph
from genflow.distribution_distances import DriftDistance, FrechetDistance, KernelDistance, SlicedWasserstein
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.feature_encoders.base import FeatureEncoder
from genflow.field_estimators import DriftingField, InstantaneousVelocity
from genflow.generators.drifting import DriftingGenerator
from genflow.generators.velocity import InstantaneousVelocityGenerator
from genflow.methods import Drifting, PostTraining, held_out
from genflow.methods.post_training import Comparison, SamplingSection

BATCH, SHAPE, CLASSES = 8, (2, 4, 4), 3


class Cells(FeatureEncoder):
    """Features of every cell of 2 x 2 pixels, and of the whole."""

    feature_names = ("cells", "whole")

    def __init__(self, seed=0):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, SHAPE[0], 2, 2, generator=random))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        cells = nn.functional.conv2d(images, self.weight, stride=2).flatten(2).mT
        return {"cells": cells, "whole": cells.mean(dim=1, keepdim=True).tanh()}


def network(num_classes=CLASSES):
    torch.manual_seed(0)
    backbone = LightningDiT(SHAPE[1], 2, 16, 1, 2, SHAPE[0], num_classes)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    return backbone


def build(distances=None, num_classes=CLASSES, **options):
    if distances is None:
        encoder = Cells()
        distances = {
            "frechet": Comparison(FrechetDistance(decay=0.5), encoder),
            "kernel": Comparison(KernelDistance(landmarks=4), encoder, ["cells"], weight=2.0),
            "pixels": Comparison(SlicedWasserstein(8)),
        }
        held_out = {"other": Comparison(FrechetDistance(), Cells(1), ["cells"])}
        options = {"held_out": held_out, **options}
    start = DriftingGenerator(network(num_classes), Identity(SHAPE[1], SHAPE[0]))
    return PostTraining(start, distances, **options)


def batch(update=0, count=BATCH):
    random = torch.Generator().manual_seed(update)
    positions = torch.arange(update * count, (update + 1) * count)
    return {
        "images": torch.randn(count, *SHAPE, generator=random),
        "labels": torch.arange(count) % CLASSES,
        "draws": Draws(0, positions, count),
    }


def part(rows, start, end):
    return {name: value[start:end] for name, value in rows.items()}


def updates(method, edges, count=2):
    """Terms and gradients of some updates in parts, whose shares the loop would give their losses."""
    found = []
    for update in range(count):
        rows = batch(update)
        parts = method.prepare([part(rows, *pair) for pair in itertools.pairwise(edges)])
        method.zero_grad()
        for piece in parts:
            terms = method(**piece)
            (terms["loss"] * len(piece["labels"]) / BATCH).backward()
        gradients = {name: value.grad for name, value in method.trained_parameters().items()}
        found.append(({name: value.detach() for name, value in terms.items()}, gradients))
        method.after_update()
    return found


@pytest.mark.parametrize("edges", [[0, 2, 4, 6, 8], [0, 5, 8]])
def test_micro_batches_change_nothing(edges):
    for (terms, gradients), (expected, expected_gradients) in zip(
        updates(build(), edges), updates(build(), [0, BATCH]), strict=True
    ):
        torch.testing.assert_close(terms, expected)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-7)


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    method, found = build(), []
    for update in range(2):
        method.zero_grad()
        terms = method(**part(batch(update), rank * BATCH // 2, (rank + 1) * BATCH // 2))
        terms["loss"].backward()
        gradients = {name: value.grad for name, value in method.trained_parameters().items()}
        found.append(({name: value.detach() for name, value in terms.items()}, gradients))
        method.after_update()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.set_forkserver_preload(["torch"])  # its import takes longer than the test
    torch.multiprocessing.start_processes(process, (tmp_path,), 2, start_method="forkserver")
    halves = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    for (first, second), (terms, gradients) in zip(halves, updates(build(), [0, BATCH]), strict=True):
        assert first[0] == second[0]
        torch.testing.assert_close(first[0], terms)
        means = {name: (value + second[1][name]) / 2 for name, value in first[1].items()}
        torch.testing.assert_close(means, gradients, rtol=1e-4, atol=1e-7)


def test_an_encoder_of_several_distances_runs_once():
    method = build()
    encoder = method.encoders[0]
    assert len(method.encoders) == 2
    encoder.calls = 0
    method(**batch())
    assert encoder.calls == 2  # generated and real samples


def test_loss_is_a_weighted_sum_of_relative_distances():
    method = build(offset=0.5)
    terms = method(**batch())
    values = [float(value) for value in method.watch.latest[:4]]
    weights = [0.5, 0.5, 2.0, 1.0]
    expected = sum(weight * value / (abs(value) + 0.5) for weight, value in zip(weights, values, strict=True))
    assert float(terms["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {"loss", "frechet", "kernel", "pixels", "other"}


def test_training_makes_samples_more_like_data():
    method = build({"pixels": Comparison(SlicedWasserstein(64))})
    optimizer = torch.optim.Adam(method.trained_parameters().values(), lr=3e-3)
    found = []
    for update in range(60):
        optimizer.zero_grad()
        terms = method(**batch(update, 32))
        terms["loss"].backward()
        optimizer.step()
        found.append(float(terms["pixels"]))
    assert sum(found[-10:]) < 0.6 * sum(found[:10])


def test_drifting_is_a_special_case(monkeypatch):
    backbone, encoder, field = network(0), Cells(), DriftingField()
    drifting = Drifting(backbone, field, Identity(SHAPE[1], SHAPE[0]), 1, BATCH, BATCH, [encoder])
    method = PostTraining(
        drifting.generator,
        {
            "encoder": Comparison(DriftDistance(field), encoder, weight=2.0),  # a feature counts once, as in Drifting
            "samples": Comparison(DriftDistance(field)),
        },
        offset=None,
    )
    rows = batch()
    rows["labels"] = torch.zeros_like(rows["labels"])
    noise, condition = method.start.draw(rows["draws"], rows["labels"])
    for either in (drifting, method):
        monkeypatch.setattr(either, "_generate", lambda *_: drifting.generator(noise, condition))
    losses, gradients = [], []
    for either, given in (
        (drifting, {"images": rows["images"][None], "labels": rows["labels"][:1], "draws": rows["draws"][:1]}),
        (method, rows),
    ):
        either.zero_grad()
        loss = either(**given)["loss"]
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([parameter.grad for parameter in backbone.parameters() if parameter.grad is not None])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_statistics_start_with_what_is_observed():
    method = build()
    rows = batch(5)
    method.observe(**part(rows, 0, 4))
    method.observe(**part(rows, 4, 8))
    whole = build()
    whole.observe(**rows)
    for name, value in whole.distances.state_dict().items():
        torch.testing.assert_close(method.distances.state_dict()[name], value)
    assert whole.distances[0].real_count == whole.distances[0].count == BATCH


def test_what_is_frozen_stays_and_statistics_are_saved():
    method = build()
    assert {name.split(".")[0] for name in method.trained_parameters()} == {"start"}
    assert not any(parameter.requires_grad for parameter in method.encoders.parameters())
    state = method.trained_state()
    assert "distances.0.real_second" in state and not any(name.startswith("encoders") for name in state)


def test_held_out_distances_that_become_worse_are_told_once(monkeypatch):
    said = []
    monkeypatch.setattr(held_out, "print_log", lambda message, *_: said.append(message))
    watch = held_out.HeldOutWatch(["trained", "held"], 1)
    for update in range(301):
        watch.latest = torch.tensor([1.0 - update / 400, 1.0 + update / 400])
        watch.after_update()
    (line,) = said
    assert line.endswith("held is 1.25 times what it was")


def test_generators_of_many_steps_are_evaluated_once_if_asked():
    def start():
        field = InstantaneousVelocity()
        codec = Identity(SHAPE[1], SHAPE[0])
        backbone = timed_network()
        return InstantaneousVelocityGenerator(backbone, field, codec, 1.0, default_guidance=2.0, steps=50)

    distances = {"pixels": Comparison(SlicedWasserstein(8))}
    with pytest.raises(ValueError, match=r"expected 1; sampling: \{steps: 1\}"):
        PostTraining(start(), distances)
    method = PostTraining(start(), distances, sampling=SamplingSection(steps=1, guidance=1.0))
    method(**batch())["loss"].backward()
    assert method.generator.nfe == 1
    assert all(parameter.grad is not None for parameter in method.trained_parameters().values())


def timed_network():
    torch.manual_seed(0)
    return DiT(SHAPE[1], 2, 16, 1, 2, SHAPE[0], CLASSES)


@pytest.mark.parametrize(
    ("distances", "options", "message"),
    [
        (
            {"a": Comparison(SlicedWasserstein(), Cells(), ["cell"])},
            {},
            "the encoder has no 'cell'; nearest match: 'cells'",
        ),
        ({"a": Comparison(SlicedWasserstein())}, {"held_out": {"a": Comparison(SlicedWasserstein())}}, "the same name"),
        ({"a": Comparison(SlicedWasserstein())}, {"sampling": SamplingSection(steps=2)}, "steps: found 2"),
        ({"a": Comparison(SlicedWasserstein())}, {"sampling": SamplingSection(guidance=0.5)}, "guidance: found 0.5"),
    ],
)
def test_refusals(distances, options, message):
    with pytest.raises((ValueError, UserError), match=message):
        build(distances, **options)


def test_there_has_to_be_a_distance():
    with pytest.raises(ValueError, match="distances: there are none"):
        build({})(**batch())


@pytest.mark.parametrize("name", ["pmf", "biflow", "drift"])
def test_recipes_of_digits_train_what_the_start_trains(name):
    graph = ComponentGraph.load(f"recipes/{name}_digits_post.yaml")
    start = graph.prerequisites["start"].graph
    assert graph.artifact == start.artifact
    assert (
        graph.build(for_training=False).artifact_module.state_dict().keys()
        == start.build_artifact().state_dict().keys()
    )


def test_a_start_that_trains_no_generator_is_refused():
    with pytest.raises(UserError, match="Classification trains no generator"):
        ComponentGraph.load(
            "recipes/pmf_digits_post.yaml", ["prerequisites.start=recipes/classifier_digits.yaml"]
        ).build()


def test_a_component_in_the_place_of_the_start_is_refused():
    with pytest.raises(UserError, match=r"expected \$name, a prerequisite that trains a generator"):
        ComponentGraph.load("recipes/pmf_digits_post.yaml", ["model.start={type: DiT}"])
