"""Post-training from a recipe: what it starts from, a resume that is exact, a run of it as the next start."""

import json
from pathlib import Path

import pytest
import torch

from genflow.engine.train import TrainOptions, train
from genflow.runs.folder import open_run

ROOT = Path(__file__).parents[2]
START = "prerequisites.start.recipe"
NETWORK = ("width=16", "heads=2", "depth=2", "head_depth=1", "auxiliary_depth=1")
TINY = [
    *(f"{START}.model.backbone.{option}" for option in NETWORK),
    *(f"prerequisites.{name}.recipe.train_cfg.max_iters=1" for name in ("start", "encoder", "judge")),
    f"{START}.evaluation=null",
    "evaluation=null",
    "train_dataloader.batch_size=16",
    "model.start_samples=40",
    "model.distances.frechet={encoder: $encoder, features: [pooled], distance: {type: FrechetDistance}}",
    "default_hooks.samples.per_class=1",
    "default_hooks.checkpoint.interval=2",
]


def post_train(work_dir, *overrides, recipe="pmf_digits_post", resume=None):
    path = ROOT / "recipes" / f"{recipe}.yaml"
    return train(path, [*TINY, *overrides], options=TrainOptions(work_dir, resume))


def scalars(work_dir):
    return [json.loads(line) for line in (work_dir / "scalars.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return post_train(tmp_path_factory.mktemp("runs") / "whole", "train_cfg.max_iters=4")


def test_a_run_starts_from_what_its_prerequisite_trained(whole):
    start, run = open_run(whole.parent / "pmf_digits"), open_run(whole)
    first, last = start.weights(), run.weights("none")
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)
    # Rates are small and updates few.
    assert all((first[name] - last[name]).abs().max() < 0.01 for name in first)
    assert {"sliced", "frechet", "autoencoder", "pixels"} <= scalars(whole)[0].keys()
    samples = run.generator().sample([1, 2], seed=0)
    assert samples.shape == (2, 1, 8, 8) and samples.isfinite().all()


def test_a_resumed_run_is_the_same(whole):
    part = post_train(whole.parent / "part", "train_cfg.max_iters=2")
    post_train(part, "train_cfg.max_iters=4", resume="auto")
    assert scalars(part) == scalars(whole)
    expected, found = (open_run(folder).weights() for folder in (whole, part))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_can_be_the_next_start(whole, tmp_path):
    recipe = tmp_path / "again.yaml"
    recipe.write_text(
        f"_base_: {ROOT / 'recipes' / '_base_' / 'post_training_digits.yaml'}\n"
        f"prerequisites:\n  start: {{recipe: {whole / 'recipe.yaml'}, run: {whole}}}\n"
        f"  encoder: {{run: {whole.parent / 'classifier_digits'}}}\n  judge: {{run: {whole.parent / 'mae_digits'}}}\n"
    )
    again = train(
        recipe,
        [entry for entry in TINY if not entry.startswith(START)] + ["train_cfg.max_iters=1"],
        options=TrainOptions(tmp_path / "again"),
    )
    assert open_run(again).weights().keys() == open_run(whole).weights().keys()
