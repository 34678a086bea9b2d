"""The recipes of pMF and Drifting on digits with other networks in the place of theirs: from training to samples."""

import json
import math
from pathlib import Path

import pytest
import torch

from genflow.engine.train import TrainOptions, train
from genflow.runs.folder import open_run

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {"image_size": 8, "channels": 1, "width": 32, "num_classes": 10}
TRANSFORMER = {**SIZES, "patch_size": 2, "heads": 4}
BACKBONES = {
    "DiT": {**TRANSFORMER, "depth": 2},
    "GroupedTransformer": {**TRANSFORMER, "groups": 2, "layers": 1, "denoise_layers": 1},
    "JiT": {**TRANSFORMER, "depth": 2, "bottleneck": 8, "context_tokens": 2, "context_start": 1, "clock": "duration"},
    # It has no "no class", which guidance needs, and the method draws no style.
    "LightningDiT": {**TRANSFORMER, "depth": 2, "num_classes": 0, "context_tokens": 2, "style_codebooks": 0},
    "MLP": {**SIZES, "layers": 4},
}


OF_DRIFTING = {
    **{name: sizes for name, sizes in BACKBONES.items() if name != "LightningDiT"},
    "PixelTransformer": {**TRANSFORMER, "depth": 2, "head_depth": 1},
}


@pytest.mark.parametrize("name", OF_DRIFTING)
def test_other_backbones_drift(name, tmp_path):
    overrides = {
        "model.backbone": {"type": name, **OF_DRIFTING[name]},
        "model.guidance": None,  # not all are told a scale
        "model.labels_per_update": 4,
        "model.samples_per_label": 3,
        "model.positives": 3,
        "train_dataloader.batch_size": 16,
        "train_cfg.max_iters": 1,
        "default_hooks.samples.per_class": 1,
        "evaluation": None,
    }
    work_dir = train(RECIPES / "drift_digits_no_encoder.yaml", overrides, None, TrainOptions(tmp_path / "run"))
    (update,) = map(json.loads, (work_dir / "scalars.jsonl").read_text().splitlines())
    assert math.isfinite(update["loss"]) and update["grad_norm"] > 0
    assert open_run(work_dir).generator().sample(torch.arange(10), seed=0).isfinite().all()


@pytest.mark.parametrize("name", BACKBONES)
def test_other_backbones_train_and_sample(name, tmp_path):
    overrides = {
        "model.backbone": {"type": name, **BACKBONES[name]},
        "train_dataloader.batch_size": 16,
        "train_cfg.max_iters": 2,
        "default_hooks.samples.per_class": 1,
        "evaluation": None,
    }
    work_dir = train(RECIPES / "pmf_digits.yaml", overrides, None, TrainOptions(tmp_path / "run"))
    updates = [json.loads(line) for line in (work_dir / "scalars.jsonl").read_text().splitlines()]
    assert len(updates) == 2
    for update in updates:
        assert math.isfinite(update["loss"]) and update["grad_norm"] > 0
        assert "auxiliary" not in update  # guidance takes the velocity of the only head
    generator = open_run(work_dir).generator()
    assert type(generator.network).__name__ == name
    assert generator.sample(torch.arange(10), seed=0).isfinite().all()
