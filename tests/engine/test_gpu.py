"""What needs a CUDA device: the same draws, training in bfloat16, sampling."""

import json
from pathlib import Path

import pytest
import torch

from genflow.draws import Draws

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RECIPES = Path(__file__).parents[2] / "recipes"


def test_draws_are_those_of_the_cpu():
    here, there = Draws(3, torch.arange(64)), Draws(3, torch.arange(64, device="cuda"))
    assert torch.equal(there.uniform("use", (5,)).cpu(), here.uniform("use", (5,)))
    assert torch.allclose(there.normal("use", (5,)).cpu(), here.normal("use", (5,)), atol=1e-5)


def test_biflow_trains_in_bfloat16_and_samples(tmp_path):
    from genflow.engine.train import TrainOptions, train
    from genflow.runs.folder import open_run

    short = {"train_cfg.max_iters": 5, "optim_wrapper.precision": "bfloat16", "evaluation.per_class": 5}
    overrides = {**short, **{f"prerequisites.teacher.recipe.{key}": value for key, value in short.items()}}
    work_dir = train(RECIPES / "biflow_digits.yaml", overrides, None, TrainOptions(tmp_path / "run"))
    losses = [json.loads(line)["loss"] for line in (work_dir / "scalars.jsonl").read_text().splitlines()]
    assert len(losses) == 5
    labels = torch.arange(10)
    trained = open_run(work_dir)
    on_gpu = trained.generator("cuda").sample(labels.cuda(), seed=0)
    on_cpu = trained.generator("cpu").sample(labels, seed=0)
    assert (on_gpu.cpu() - on_cpu).abs().max() < 0.05
