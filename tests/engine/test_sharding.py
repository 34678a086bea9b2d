"""Weights shared out over processes (FSDP2): the same training as one process, and checkpoints for any number."""

import json
import sys
from pathlib import Path

import pytest
import torch
from started import run

from genflow.weights import read_checkpoint, read_weights

ROOT = Path(__file__).parents[2]
COMMON = [
    "train_dataloader.batch_size=16",
    "default_hooks.samples={per_class: 1, classes: 3}",
    "default_hooks.checkpoint={interval: 5, max_keep_ckpts: 9}",
    "param_scheduler=[]",
    "ema={main: {decay: 0.9}, slow: {decay: 0.99}}",
]
SGD = "optim_wrapper={optimizer: {type: SGD, lr: 0.01}, clip_grad_norm: 1.0}"
FLOW = [f"model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")]
TEACHER = "prerequisites.teacher.recipe."
DIT = "{type: DiT, num_classes: 10, image_size: 8, channels: 1, patch_size: 4, width: 16, depth: 2, heads: 2}"
DRIFT = ("labels_per_update=4", "samples_per_label=4", "positives=4", "queue={per_class: 8, overall: 40}")
#: Of every method a recipe and what makes it tiny; the teacher of BiFlow is shared out too.
METHODS = {
    "flow": ("itarflow_digits", [*FLOW, SGD, "train_cfg.micro_batches=2"]),
    "biflow": (
        "biflow_digits",
        [
            *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "groups=2", "layers=1")),
            *(TEACHER + option for option in (*FLOW, "train_cfg.max_iters=1", "evaluation=null")),
            "train_cfg.checkpointing=true",
            SGD,
        ],
    ),
    "muon": (
        "pmf_digits",
        [
            *(f"model.backbone.{option}" for option in ("width=16", "heads=2", "depth=2", "head_depth=1")),
            "model.backbone.auxiliary_depth=1",
            "model.guidance.label_drop=0.3",
        ],
    ),
    "derivative": ("pmf_digits", [f"model.backbone={DIT}", SGD]),
    "drifting": (
        "drift_digits",
        [
            *(f"model.backbone.{option}" for option in ("width=16", "heads=2", "depth=1")),
            *(f"model.{option}" for option in DRIFT),
            "model.encoders=[]",  # features at random make much of rounding
            "prerequisites={}",
            "optim_wrapper={optimizer: {type: AdamW, lr: 0.01}}",  # small steps leave samples that are hardly apart
        ],
    ),
    "post_training": (
        "pmf_digits_post",
        [
            *(
                f"prerequisites.start.recipe.model.backbone.{option}"
                for option in ("width=16", "heads=2", "depth=2", "head_depth=1", "auxiliary_depth=1")
            ),
            "prerequisites.start.recipe.evaluation=null",
            *(f"prerequisites.judge.recipe.model.encoder.{option}" for option in ("width=8", "norm_groups=2")),
            *(f"prerequisites.{name}.recipe.train_cfg.max_iters=1" for name in ("start", "encoder", "judge")),
            "model.start_samples=32",
            "model.distances.frechet={encoder: $encoder, features: [pooled], distance: {type: FrechetDistance}}",
            SGD,
        ],
    ),
    "encoder": ("mae_digits", ["model.encoder.width=8", "model.encoder.norm_groups=2", SGD]),
}
SHARED_OUT = ("train_cfg.sharding.frozen=true",)
HYBRID = ("train_cfg.sharding.over=2",)


def train(work_dir, name, processes, *options, updates=10, more=(), script=()):
    recipe, own = METHODS[name]
    tool = [*script, ROOT / "tools" / "train.py"]
    command = [sys.executable, *tool, ROOT / "recipes" / f"{recipe}.yaml", "--work-dir", work_dir]
    options = [*COMMON, f"train_cfg.max_iters={updates}", "evaluation=null", *own, *options]
    done = run([*command, *more, "--cfg-options", *options], processes, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """By method: the run of one process."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def run_of(name, processes=1):
        if name not in found:
            found[name] = folder / name / "run"
            train(found[name], name, processes)
        return found[name]

    return run_of


def scalars(folder):
    return [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]


def same_run(ours, expected):
    assert len(scalars(ours)) == 10
    for found, line in zip(scalars(ours), scalars(expected), strict=True):
        assert found == pytest.approx(line, rel=1e-5, abs=1e-6)
    for average in ("generator", "generator-slow", "generator-none"):
        found, weights = (read_weights(folder / f"{average}.safetensors") for folder in (ours, expected))
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-5), f"{average}: {name}"


PAIRS = """
import sys
sys.path.insert(0, {root!r})
from genflow.engine import muon
muon._SHARERS = 2
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_pairs_of_four_processes_share_the_work_of_muon(alone, tmp_path):
    """Weights are shared out in pairs, too."""
    (tmp_path / "pairs.py").write_text(PAIRS.format(root=str(ROOT)))
    train(tmp_path / "run", "muon", 4, *HYBRID, script=[tmp_path / "pairs.py"])
    same_run(tmp_path / "run", alone("muon"))


def started_from(folder, run_folder):
    """A folder beside which the prerequisites of a run lie."""
    folder.mkdir()
    for other in run_folder.parent.iterdir():
        if other != run_folder:
            (folder / other.name).symlink_to(other)
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "processes", "options"),
    [
        ("biflow", 2, SHARED_OUT),
        ("muon", 2, ()),
        pytest.param("derivative", 2, SHARED_OUT, marks=pytest.mark.slow),
        pytest.param("encoder", 2, SHARED_OUT, marks=pytest.mark.slow),
        pytest.param("post_training", 2, SHARED_OUT, marks=pytest.mark.slow),
    ],
)
def test_processes_equal_one(alone, tmp_path, name, processes, options):
    expected = alone(name)
    work_dir = started_from(tmp_path / "many", expected)
    train(work_dir, name, processes, *options)
    same_run(work_dir, expected)
    if name != "encoder":
        assert (work_dir / "samples" / "step_00000010.png").is_file()


@pytest.mark.slow
def test_drifting_shared_out_equals_drifting_with_copies(alone, tmp_path):
    """Every process has a queue of its own, so that their number is part of what is trained."""
    expected = alone("drifting", processes=2)
    train(tmp_path / "run", "drifting", 2, *SHARED_OUT)
    same_run(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "options"),
    [("muon", 1, ()), ("flow", 4, HYBRID)],
    ids=["to one", "to four"],
)
def test_a_checkpoint_of_two_processes_continues_on_others_and_back(alone, tmp_path, name, processes, options):
    work_dir = tmp_path / "run"
    train(work_dir, name, 2, *SHARED_OUT, updates=5)
    same_checkpoint(*(folder / "checkpoints" / "step_00000005.pt" for folder in (work_dir, alone(name))))
    train(work_dir, name, processes, *options, updates=8, more=["--resume"])
    train(work_dir, name, 2, *SHARED_OUT, more=["--resume"])
    same_run(work_dir, alone(name))


def same_checkpoint(*files):
    ours, expected = map(read_checkpoint, files)
    assert ours["model"].keys() == expected["model"].keys()
    assert ours["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
    for index, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            found = ours["optimizer"]["state"][index][name]
            assert type(found) is type(value)
            assert not isinstance(value, torch.Tensor) or torch.allclose(found, value, rtol=1e-4, atol=1e-6)


def test_what_does_not_divide_is_one_line(tmp_path):
    recipe = ROOT / "recipes" / "itarflow_digits.yaml"
    command = [sys.executable, ROOT / "tools" / "train.py", recipe, "--work-dir", tmp_path / "run"]
    done = run(
        [*command, "--cfg-options", "train_cfg.sharding.over=3", "train_dataloader.batch_size=16"],
        processes=2,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("error") == 1
    assert "train_cfg.sharding.over: found 3, expected a divisor of the 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()
