"""Fixtures that several test files share: a recipe of toy size and a finished run of it."""

import copy
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start too; torch reads it when imported

import pytest
import torch

from genflow.config.recipe import dump_yaml

# Sums then do not depend on the machine's number of cores, and files may run side by side.
torch.set_num_threads(1)

TINY_RECIPE = {
    "model": {
        "type": "MaximumLikelihood",
        "noise_std": 0.3,
        "codec": {"type": "Identity", "image_size": 8, "channels": 1},
        "flow": {
            "type": "TARFlow",
            "image_size": 8,
            "channels": 1,
            "patch_size": 4,
            "width": 16,
            "blocks": 2,
            "layers": 1,
            "num_classes": 10,
            "head_width": 8,
            "prefix_tokens": 2,
        },
    },
    "train_dataloader": {"dataset": {"type": "Digits", "split": "train"}, "batch_size": 8},
    "train_cfg": {"max_iters": 3},
    "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 1e-3}},
    "ema": {"main": {"decay": 0.9}, "slow": {"decay": 0.99}},
    "default_hooks": {"samples": {"per_class": 1}},
    "evaluation": {"type": "DigitsEvaluator", "per_class": 2},
}


@pytest.fixture
def tiny_recipe() -> dict:
    """A TARFlow of width 16 on digits, trained for 3 updates; the test's own copy."""
    return copy.deepcopy(TINY_RECIPE)


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_recipe: dict) -> Path:
    """``tiny.yaml`` with :func:`tiny_recipe` in the test's own folder."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(tiny_recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tiny recipe; read only, copy it to change it."""
    from genflow.engine.train import TrainOptions, train

    folder = tmp_path_factory.mktemp("finished")
    recipe = folder / "tiny.yaml"
    recipe.write_text(dump_yaml(TINY_RECIPE), encoding="utf-8")
    return train(recipe, options=TrainOptions(work_dir=folder / "finished_tiny"))
