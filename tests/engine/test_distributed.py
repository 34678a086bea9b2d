"""Two gloo processes on CPUs equal one process with the joint batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from started import run

from genflow.weights import read_checkpoint

ROOT = Path(__file__).parents[2]
TINY_FLOW = ["width=16", "head_width=8", "blocks=2", "layers=1"]
COMMON = [
    "train_dataloader.batch_size=16",
    "train_cfg.max_iters=2",
    "default_hooks.checkpoint.interval=1",
    "default_hooks.samples.per_class=1",
    # Plain gradient descent with rate 1 and no clipping: the change of the weights is the gradient.
    "optim_wrapper.optimizer={type: SGD, lr: 1.0}",
    "optim_wrapper.clip_grad_norm=null",
    "param_scheduler=[]",
    "evaluation=null",
]


def train(work_dir, recipe, processes, options):
    command = [sys.executable, ROOT / "tools" / "train.py", ROOT / "recipes" / recipe, "--work-dir", work_dir]
    command += ["--launcher", "pytorch"] if processes > 1 else []
    done = run([*command, "--cfg-options", *COMMON, *options], processes, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (work_dir / "scalars.jsonl").read_text().splitlines()
    states = [read_checkpoint(path)["model"] for path in sorted(work_dir.glob("checkpoints/*.pt"))]
    return [json.loads(line) for line in lines], states


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("itarflow_digits.yaml", [f"model.flow.{option}" for option in TINY_FLOW] + ["model.flow.scaled=false"]),
        pytest.param(
            "biflow_digits.yaml",
            [
                *(f"prerequisites.teacher.recipe.model.flow.{option}" for option in TINY_FLOW),
                *(f"prerequisites.teacher.recipe.{option}" for option in COMMON if "checkpoint" not in option),
                *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "groups=2", "layers=1")),
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "pmf_digits.yaml",
            [
                *(f"model.backbone.{option}" for option in ("width=16", "heads=2", "depth=2", "head_depth=1")),
                "model.backbone.auxiliary_depth=1",
                "model.guidance.label_drop=0.3",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["flow", "biflow", "pmf"],
)
def test_two_processes_equal_one(tmp_path, recipe, options):
    one, states = train(tmp_path / "one" / "run", recipe, 1, options)
    if recipe.startswith("biflow"):  # the same teacher for both
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "itarflow_digits").symlink_to(tmp_path / "one" / "itarflow_digits")
    two, distributed_states = train(tmp_path / "two" / "run", recipe, 2, options)
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two] == [1, 2]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6)
    for ours, theirs in zip(states, distributed_states, strict=True):
        for name, value in ours.items():
            assert torch.allclose(theirs[name].double(), value.double(), rtol=1e-4, atol=1e-6), name
    # The step was large enough to tell a mean from a sum or one half of the batch.
    assert one[0]["grad_norm"] > 1e-3


def test_launcher_without_its_environment_is_one_line(tmp_path):
    recipe = ROOT / "recipes" / "itarflow_digits.yaml"
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(recipe), "--launcher", "pytorch"]
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torchrun" in done.stderr
    assert not list(tmp_path.iterdir())


def test_batch_must_be_shared_out_equally(tmp_path):
    recipe = ROOT / "recipes" / "itarflow_digits.yaml"
    command = [sys.executable, ROOT / "tools" / "train.py", recipe, "--work-dir", tmp_path / "run"]
    command += ["--cfg-options", "train_dataloader.batch_size=15"]
    done = run(command, processes=2, capture_output=True, text=True)
    assert done.returncode == 2
    assert "train_dataloader.batch_size: found 15, expected a positive multiple of the 2 processes" in done.stderr
