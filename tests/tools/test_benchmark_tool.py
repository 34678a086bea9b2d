"""tools/benchmark.py as a user runs it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import started

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "benchmark.py"
RECIPE = ROOT / "recipes" / "biflow_digits.yaml"
TEACHER = "prerequisites.teacher.recipe.model.flow"
TINY = [
    *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "layers=1", "groups=2")),
    *(f"{TEACHER}.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
]


def test_inverse_of_a_recipe(tmp_path):
    command = [TOOL, "inverse", RECIPE, "--batch", 2, "--repeats", 2, "--device", "cpu"]
    command += ["--json", tmp_path / "inverse.json", "--cfg-options", *TINY]
    command = [sys.executable, *map(str, command)]
    done = started.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "inverse.json").read_text())
    assert {"a", "b", "ratio", "low", "high", "hardware", "versions"} <= report.keys()
    assert report["benchmark"] == "inverse" and report["options"]["precision"] == "float32"
    assert 0 < report["a"] < report["b"] and report["low"] <= report["ratio"] <= report["high"]
    assert {"cpu", "cores", "threads"} <= report["hardware"].keys()
    assert {"python", "torch", "genflow"} <= report["versions"].keys()
    assert "exact inverse" in done.stdout
    assert f"inverse: {report['ratio']:.4g} times" in done.stdout and report["versions"]["torch"] in done.stdout


def test_train_step_of_a_recipe(tmp_path):
    tiny = [f"model.backbone.{option}" for option in ("width=16", "heads=2", "depth=2", "head_depth=1")]
    command = [TOOL, "train-step", ROOT / "recipes" / "pmf_digits.yaml", "--batch", 6, "--repeats", 2]
    command += ["--device", "cpu", "--json", tmp_path / "step.json"]
    command += ["--cfg-options", *tiny, "model.backbone.auxiliary_depth=1"]
    command = [sys.executable, *map(str, command)]
    done = started.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["benchmark"] == "train-step"
    assert report["time_ratio"] == pytest.approx(report["a"] / report["b"])
    assert report["memory_ratio"] == pytest.approx(report["memory"][0] / report["memory"][1])
    # Ours differentiates the half of the rows that moves, and asks the model only where its velocity counts.
    assert report["rows"]["moving"] == 3 and 3 <= report["rows"]["guidance"] < 18
    assert report["losses"][0] == pytest.approx(report["losses"][1], rel=1e-4)
    assert report["macs"] > 0 and report["floor_share"] == pytest.approx(
        report["macs"] / report["matrix_rate"] / report["a"]
    )
    assert "ours / plain" in done.stdout


def test_drift_loss_of_a_recipe(tmp_path):
    small = [f"model.{option}" for option in ("labels_per_update=2", "samples_per_label=4", "positives=3")]
    command = [TOOL, "drift-loss", ROOT / "recipes" / "drift_digits.yaml", "--repeats", 2, "--device", "cpu"]
    command += ["--json", tmp_path / "loss.json", "--cfg-options", *small]
    done = started.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "loss.json").read_text())
    assert report["benchmark"] == "drift-loss" and len(report["seconds"][0]) == 2
    assert report["time_ratio"] == pytest.approx(report["a"] / report["b"])
    assert report["memory_ratio"] == pytest.approx(report["memory"][0] / report["memory"][1])
    assert "ours / formulas" in done.stdout


def test_data_without_a_recipe(tmp_path):
    command = [TOOL, "data", "--repeats", 1, "--pictures", 2, "--packed", 3, "--latents", 4, "--batch", 2]
    command += ["--json", tmp_path / "data.json"]
    done = started.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "data.json").read_text())
    assert report["benchmark"] == "data" and report["hardware"]["threads"] == 1
    assert report["latents"]["batch"]["samples_per_second"] > 0
    assert "packed images, take" in done.stdout and "goal for latents" in done.stdout


def test_suite_in_small(tmp_path):
    out = tmp_path / "suite"
    command = [TOOL, "suite", "--device", "cpu", "--out", out, "--only", "draws", "gpu-tests"]
    command = [sys.executable, *map(str, command)]
    done = started.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "there is no GPU: the small suite, as with --small\n" in done.stdout
    assert "gpu-tests: skipped (" in done.stdout and "): there is no GPU\n1 done, 1 skipped\n" in done.stdout
    report = json.loads((out / "suite.json").read_text())
    assert report["suite"] == "small" and report["hardware"]["cpu"] and report["versions"]["torch"]
    normal, uniform = report["entries"]["draws"]["figures"]["draws"]
    assert normal["ours"]["seconds"] > 0 and uniform["law"] == "uniform"
    page = (out / "suite.md").read_text()
    assert "## Random numbers" in page and "| gpu-tests | skipped | there is no GPU |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: BENCHMARK (--help shows an example)"),
        (["inverze", RECIPE], "argument BENCHMARK: invalid choice: 'inverze' (choose from "),
        (["inverse"], "the following arguments are required: RUN|RECIPE (--help shows an example)"),
        (["inverse", "none.yaml"], "none.yaml: no such recipe"),
        (["inverse", "."], ".: not a finished run: recipe.yaml and generator.safetensors missing"),
        (["inverse", ".", "--cfg-options", "seed=1"], "--cfg-options: they change a recipe; a run folder has its own"),
        (["inverse", RECIPE, "--batch", "2", "0"], "--batch: found 0, expected at least 1"),
        (["inverse", RECIPE, "--repeats", "0"], "--repeats: found 0, expected at least 1"),
        (["inverse", RECIPE, "--guidance", "-1", "--cfg-options", *TINY], "guidance: found -1.0, expected at least 0"),
        (["inverse", RECIPE, "--precision", "float16"], "argument --precision: invalid choice: 'float16' ("),
        (["inverse", RECIPE, "--json", "."], "--json: '.' is a folder"),
        (["train-step", RECIPE, "--batch", "0"], "--batch: found 0, expected at least 1"),
        (["train-step", RECIPE], f"{RECIPE}: model: found BiFlow, expected a MeanFlow"),
        (["drift-loss", RECIPE, "--repeats", "0"], "--repeats: found 0, expected at least 1"),
        (["drift-loss", RECIPE], f"{RECIPE}: model: found BiFlow, expected a Drifting"),
        (["data", "--pictures", "0"], "--pictures: found 0, expected at least 1"),
        (["data", "--latents", "9"], "--batch: found 256, expected at most --packed 2000 and --latents 9"),
        (
            ["suite", "--only", "hardwar", "--small"],
            "--only: found 'hardwar', expected entries of the small suite; near",
        ),
        (["suite", "--minutes", "0"], "--minutes: found 0, expected a number above 0"),
        (["suite", "--out", TOOL, "--device", "cpu"], f"--out: '{TOOL}' is no folder"),
        (["suite", "--overwrite", "--resume"], "--overwrite and --resume exclude each other"),
        (["data", RECIPE], f"unrecognized arguments: {RECIPE}"),
        (
            ["inverse", ROOT / "recipes" / "itarflow_digits.yaml"],
            f"{ROOT / 'recipes' / 'itarflow_digits.yaml'}: model.type: found 'MaximumLikelihood', expected a BiFlow, "
            "which has a flow to invert",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name="__main__")
    errors = capfd.readouterr().err.strip("\n")
    assert stopped.value.code == 2 and errors.isprintable()
    assert errors.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_help_of_a_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(TOOL), "inverse", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name="__main__")
    text = capsys.readouterr().out
    assert "benchmark.py inverse" in text and "example:" in text and "--json FILE" in text


def test_distances(tmp_path):
    command = [TOOL, "distance", "--width", 6, "--batch", 16, "--repeats", 1, "--device", "cpu"]
    command += ["--recipe", ROOT / "recipes" / "pmf_digits.yaml", "--json", tmp_path / "distance.json"]
    command = [sys.executable, *map(str, command)]
    done = started.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "distance.json").read_text())
    names = {"FrechetDistance", "KernelDistance", "SlicedWasserstein", "SinkhornDivergence"}
    assert report["distances"].keys() == names and all(name in done.stdout for name in names)
    for row in report["distances"].values():  # ours agree with the transcriptions
        assert row["value_difference"] < 1e-3 and row["share"] == pytest.approx(row["a"] / report["forward"] / 16)
