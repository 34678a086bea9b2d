"""Numbers that no machine can bear, and mistakes of the first update: refused before anything trains."""

import os
import time
from pathlib import Path

import pytest

from genflow import ComponentGraph, UserError
from genflow.engine import sizes
from genflow.engine.preflight import check, check_untrained
from genflow.engine.train import TrainOptions, train
from genflow.runs.folder import RunFolder

RECIPES = Path(__file__).parents[2] / "recipes"
HUGE = 10**9
BOMBS = {
    "biflow_digits": [
        "train_dataloader.batch_size",
        "train_dataloader.num_workers",
        "train_cfg.micro_batches",
        "evaluation.per_class",
        "default_hooks.samples.per_class",
        "model.inverse.backbone.image_size",
        "model.inverse.backbone.channels",
        "model.inverse.backbone.patch_size",
        "model.inverse.backbone.width",
        "model.inverse.backbone.heads",
        "model.inverse.backbone.groups",
        "model.inverse.backbone.layers",
        "model.inverse.backbone.denoise_layers",
        "model.inverse.backbone.num_classes",
        "model.inverse.backbone.class_tokens",
        "model.inverse.backbone.guidance_tokens",
        "prerequisites.teacher.recipe.model.flow.blocks",
        "prerequisites.teacher.recipe.model.flow.layers",
        "prerequisites.teacher.recipe.model.flow.width",
        "prerequisites.teacher.recipe.train_dataloader.batch_size",
        "prerequisites.teacher.recipe.train_dataloader.num_workers",
    ],
    "drift_digits": [
        "model.samples_per_label",
        "model.positives",
        "model.labels_per_update",
        "model.guidance.negatives",
        "model.queue.per_class",
        "model.queue.overall",
        "model.backbone.depth",
        "model.backbone.context_tokens",
        "model.backbone.style_codebooks",
        "model.backbone.style_entries",
        "prerequisites.encoder.recipe.model.encoder.width",
        "prerequisites.encoder.recipe.model.encoder.depths.2",
    ],
    "sinkhorn_digits": ["model.field.iterations"],
    "pmf_digits": [
        "model.backbone.depth",
        "model.backbone.head_depth",
        "model.backbone.auxiliary_depth",
        "model.backbone.class_tokens",
        "model.backbone.time_tokens",
        "model.backbone.bottleneck",
        "model.backbone.feedforward_multiple",
        "model.codec.image_size",
    ],
    "classifier_digits": ["model.encoder.widths.1", "model.image_shape.1", "model.encoder.num_classes"],
    "drift_toy_far": ["model.backbone.layers", "model.backbone.width", "train_dataloader.dataset.dimensions"],
}


def refused(recipe, *overrides, folder=Path("nowhere/run")):
    with pytest.raises(UserError) as caught:
        graph = ComponentGraph.load(RECIPES / f"{recipe}.yaml", overrides)
        check(graph)
        check_untrained(graph, RunFolder(folder))
    message = str(caught.value)
    assert message.isprintable() and message.startswith(f"{RECIPES / recipe}.yaml: ")
    return message.removeprefix(f"{RECIPES / recipe}.yaml: ")


@pytest.mark.parametrize("recipe", BOMBS)
def test_bombs_are_refused_in_time(recipe):
    for place in BOMBS[recipe]:
        began = time.process_time()
        message = refused(recipe, f"{place}={HUGE}")
        assert time.process_time() - began < 10, place
        assert place.split(".")[0] in message, message


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (
            "pmf_digits",
            f"train_dataloader.batch_size={HUGE}",
            f"train_dataloader.batch_size: found {HUGE}, which needs an",
        ),
        (
            "pmf_digits",
            "train_cfg.micro_batches=33",
            "train_cfg.micro_batches: found 33, expected at most the train_data",
        ),
        ("pmf_digits", "model.backbone.width=4000000", "model.backbone: it needs an estimated "),
        ("drift_digits", f"model.positives={HUGE}", "model.positives: it needs an estimated "),
        (
            "drift_digits",
            "model.queue={overall: 2000000000}",
            "model.queue.overall: it needs an estimated 512 GB, this",
        ),
    ],
)
def test_what_needs_too_much_memory_says_how_much(recipe, override, message, monkeypatch):
    monkeypatch.setattr(sizes, "machine_memory", lambda: 32 * 10**9)
    line = refused(recipe, override)
    assert line.startswith(message), line


def test_activations_of_a_batch_and_of_a_sample(monkeypatch):
    monkeypatch.setattr(sizes, "machine_memory", lambda: 2 * 10**8)
    line = refused("pmf_digits", "train_dataloader.batch_size=2000")
    assert line.startswith(
        "train_cfg.micro_batches: found 1, of which each, 2000 rows of activations, needs an estimated"
    )
    for fitting in ("train_cfg.micro_batches=100", "train_cfg.checkpointing=true"):
        check(ComponentGraph.load(RECIPES / "pmf_digits.yaml", ["train_dataloader.batch_size=2000", fitting]))
    monkeypatch.setattr(sizes, "machine_memory", lambda: 10**8)
    assert refused("pmf_digits", "model.backbone.class_tokens=10000").startswith("model: a single sample, whose activa")


def test_more_workers_than_four_for_a_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    line = refused("pmf_digits", "train_dataloader.num_workers=9")
    assert line == "train_dataloader.num_workers: found 9, expected at most 8, 4 for each of this machine's 2 cores"
    check(ComponentGraph.load(RECIPES / "pmf_digits.yaml", ["train_dataloader.num_workers=8"]))


def test_more_modules_than_any_network_has():
    teacher = "prerequisites.teacher.recipe.model.flow"
    line = refused("biflow_digits", f"{teacher}.blocks=1000", f"{teacher}.layers=1000")
    assert line == "prerequisites.teacher.recipe: model.flow: more than 20000 modules; make it less deep"


def test_the_memory_of_this_machine():
    assert 10**8 < sizes.machine_memory() < 10**15


def test_activations_are_counted_by_storage():
    import torch
    from torch import nn

    layer = nn.Linear(8, 16)
    with sizes.saved_bytes(layer) as saved:
        x = torch.zeros(4, 8)
        y = layer(x)
        (y.exp() + y.exp().view(-1).view(4, 16)).sum()
    assert saved[0] == 4 * (4 * 8 + 2 * 4 * 16)  # the input and two results, without the weights


# What would show in the first update


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            "drift_digits",
            ["prerequisites.encoder.recipe.model.encoder.channels=3"],
            "prerequisites.encoder: its first update would fail: ",
        ),
        (
            "drift_digits",
            ["prerequisites.encoder.recipe.model.codec.image_size=16"],
            "prerequisites.encoder.recipe: model: the codec's latents are (1, 16, 16), the encoder takes (1, 8, 8)",
        ),
        (
            "biflow_digits",
            ["prerequisites.teacher.recipe.optim_wrapper.optimizer={type: SGD, nesterov: true}"],
            "prerequisites.teacher.recipe: optim_wrapper.optimizer: Nesterov momentum requires",
        ),
        (
            "pmf_digits",
            ["optim_wrapper.optimizer={type: LBFGS}"],
            "optim_wrapper.optimizer.type: found 'LBFGS', expected",
        ),
        ("pmf_digits", ["param_scheduler=[{type: StepLR}]"], "param_scheduler.0: TypeError "),
        ("pmf_digits", ["evaluation.type=DigitsEvaluator", "model.codec.channels=3"], "model: the codec's latents are"),
    ],
)
def test_what_would_fail_in_the_first_update(recipe, overrides, message):
    line = refused(recipe, *overrides)
    assert line.startswith(message), line


def test_nothing_is_trained_or_written_before(tmp_path, monkeypatch):
    """The prerequisite is fine; what needs it is not."""
    monkeypatch.chdir(tmp_path)
    overrides = ["model.encoders=[{type: ConvNet, channels: 3, widths: [4], num_classes: 10}, $encoder]"]
    with pytest.raises(UserError, match="its first update would fail"):
        train(RECIPES / "drift_digits.yaml", overrides, options=TrainOptions(tmp_path / "run"))
    assert not list(tmp_path.iterdir())
