"""The tools as a user runs them, on a tiny BiFlow with its teacher."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import started
from PIL import Image

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "biflow_digits.yaml"
TEACHER = "prerequisites.teacher.recipe"
TINY = [
    "train_cfg.max_iters=3",
    "train_dataloader.batch_size=16",
    "default_hooks.samples={interval: 2, per_class: 2}",
    "default_hooks.logger.interval=1",
    "evaluation.per_class=2",
    *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "layers=1", "groups=2")),
    f"{TEACHER}.train_cfg.max_iters=2",
    f"{TEACHER}.evaluation=null",
    f"{TEACHER}.default_hooks.samples.per_class=1",
    *(f"{TEACHER}.model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
]


def tool(name, *arguments, cwd=None, check=True):
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    run = started.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    assert not check or run.returncode == 0, run.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    run = tool("train", RECIPE, "--cfg-options", *TINY, cwd=folder)
    return folder / "work_dirs" / "biflow_digits", run


def test_train_trains_the_missing_teacher_first_and_says_so(trained):
    work_dir, run = trained
    first_line = run.stdout.splitlines()[0]
    assert "prerequisite 'teacher'" in first_line and "training itarflow_digits first" in first_line
    assert "eta:" in run.stderr + run.stdout
    assert "parameters" in run.stderr + run.stdout and "GMACs per image" in run.stderr + run.stdout
    for folder in (work_dir, work_dir.parent / "itarflow_digits"):
        for name in ("recipe.yaml", "generator.safetensors", "metrics.json", "scalars.jsonl"):
            assert (folder / name).is_file()
    assert run.stdout.splitlines()[-1].endswith("step_00000003.png")
    assert sorted(path.name for path in (work_dir / "samples").iterdir()) == ["step_00000002.png", "step_00000003.png"]
    picture = Image.open(work_dir / "samples" / "step_00000003.png")
    assert picture.width >= 2 * 64 and picture.height >= 10 * 64
    assert len(set(picture.get_flattened_data() if hasattr(picture, "get_flattened_data") else picture.getdata())) > 2


def test_scalars_hold_every_term_of_every_update(trained):
    lines = [json.loads(line) for line in (trained[0] / "scalars.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert {"loss", "align_0", "align_1", "reconstruction", "grad_norm", "lr"} <= line.keys()
        terms = line["align_0"] + line["align_1"] + line["reconstruction"]
        assert line["loss"] == pytest.approx(terms, rel=1e-6)


def test_metrics(trained):
    metrics = json.loads((trained[0] / "metrics.json").read_text())
    assert metrics["updates"] == 3 and metrics["images"] == 48
    assert metrics["generator"]["nfe"] == 1
    assert metrics["generator"]["generator_params"] > 1000
    assert set(metrics["evaluation"]["model"]) == {"accuracy", "fd", "precision", "recall"}
    assert metrics["evaluation"]["real"]["accuracy"] == pytest.approx(0.991, abs=1e-3)


def test_prerequisite_that_is_there_is_used(trained, tmp_path):
    work_dir = tmp_path / "biflow"
    (tmp_path / "itarflow_digits").symlink_to(trained[0].parent / "itarflow_digits")
    before = (tmp_path / "itarflow_digits" / "generator.safetensors").stat().st_mtime_ns
    run = tool("train", RECIPE, "--work-dir", work_dir, "--cfg-options", *TINY)
    assert run.stdout.splitlines()[0] == f"prerequisite 'teacher': using {tmp_path / 'itarflow_digits'}"
    assert (tmp_path / "itarflow_digits" / "generator.safetensors").stat().st_mtime_ns == before
    # The same recipe and seed give the same run.
    assert (work_dir / "scalars.jsonl").read_text() == (trained[0] / "scalars.jsonl").read_text()


def test_prerequisite_that_does_not_fit_is_one_line(trained, tmp_path):
    (tmp_path / "itarflow_digits").symlink_to(trained[0].parent / "itarflow_digits")
    other = [option.replace("flow.head_width=8", "flow.head_width=16") for option in TINY]  # of the same shapes
    run = tool("train", RECIPE, "--work-dir", tmp_path / "run", "--cfg-options", *other, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "prerequisites.teacher" in run.stderr and "model.flow.head_width is 8 there and 16 here" in run.stderr
    assert not (tmp_path / "run").exists()


def test_sample_archive(trained, tmp_path):
    out = tmp_path / "samples.npz"
    run = tool("sample", trained[0], "--per-class", 3, "--guidance", 2.0, "--seed", 1, "--out", out)
    assert "30 images, 1 network evaluation(s) each" in run.stdout
    data = np.load(out)
    assert data["images"].shape == (30, 8, 8, 1) and data["images"].dtype == np.uint8
    assert data["labels"].tolist() == [label for label in range(10) for _ in range(3)]
    smaller = tmp_path / "smaller.npz"
    tool("sample", trained[0], "--per-class", 3, "--guidance", 2, "--seed", 1, "--batch-size", 7, "--out", smaller)
    assert np.abs(np.load(smaller)["images"].astype(int) - data["images"]).max() <= 1


def test_sample_grid_and_folder(trained, tmp_path):
    tool("sample", trained[0], "--labels", 3, 7, "--num", 6, "--out", tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    tool("sample", trained[0], "--labels", 3, 7, "--num", 5, "--out", tmp_path / "folder")
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [f"{index:06d}_class{label}.png" for index, label in enumerate([3, 7, 3, 7, 3])]


def test_teacher_samples_by_its_exact_inverse(trained, tmp_path):
    teacher = trained[0].parent / "itarflow_digits"
    run = tool("sample", teacher, "--num", 4, "--out", tmp_path / "grid.png")
    assert "4 images, 33 network evaluation(s) each" in run.stdout  # 2 blocks x 16 tokens, and the score step


def test_evaluate(trained):
    run = tool("evaluate", trained[0], "--guidance", "1.5")
    for word in ("accuracy", "fd", "precision", "recall", "real data", "0.991", "guidance 1.5", "NFE 1"):
        assert word in run.stdout
    metrics = json.loads((trained[0] / "metrics.json").read_text())
    assert metrics["evaluation, seed 0, guidance 1.5, average None"]["nfe"] == 1
    assert metrics["evaluation"]["guidance"] == 0  # the one that the training wrote


def test_resume_of_a_finished_run_changes_nothing(trained):
    names = ("generator.safetensors", "scalars.jsonl", "recipe.yaml")
    before = [(trained[0] / name).read_bytes() for name in names]
    tool("train", RECIPE, "--resume", "--cfg-options", *TINY, cwd=trained[0].parents[1])
    assert [(trained[0] / name).read_bytes() for name in names] == before


def test_show_recipe():
    run = tool("show_recipe", RECIPE)
    for word in ("GroupedTransformer", "frozen", "GMACs", "```mermaid", "-.->", "max_iters:"):
        assert word in run.stdout


def test_analyze_flops(tmp_path):
    pytest.importorskip("diffusers")
    recipes = [ROOT / "recipes" / f"{name}_b2_imagenet.yaml" for name in ("itarflow", "biflow")]
    run = tool("analyze_flops", *recipes, "--by-component", "--json", tmp_path / "flops.json")
    teacher, biflow = json.loads((tmp_path / "flops.json").read_text())
    assert set(teacher) >= {
        "recipe", "generator_params", "generator_macs", "decoder_params", "decoder_macs", "nfe", "published",
    }  # fmt: skip
    assert teacher["recipe"] == "itarflow_b2_imagenet" and teacher["nfe"] > 2000
    assert biflow["nfe"] == 1
    assert teacher["generator_params"] == pytest.approx(119.8e6, rel=0.01)
    assert biflow["generator_params"] == pytest.approx(133.9e6, rel=0.01)
    assert biflow["decoder_params"] == pytest.approx(49.49e6, rel=0.001)
    assert biflow["published"]["params_m"] == 133
    assert "network.group_layers.0" in run.stdout


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "tools").glob("*.py"))])
def test_help_shows_an_example(name):
    run = tool(name, "--help")
    assert "example:" in run.stdout and f"tools/{name}.py" in run.stdout
