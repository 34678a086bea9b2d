"""A user's pictures from training to sampling: names of classes, what is left out, paths, and outputs that stay."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.config.recipe import dump_yaml, load_recipe
from genflow.engine.train import TrainOptions, train

ROOT = Path(__file__).parents[2]
CLASSES = ["10", "2", "birds", "cats"]


@pytest.fixture
def tool(monkeypatch, capfd):
    """Runs a tool in this process; returns what it prints."""

    def output(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        capfd.readouterr()
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        return capfd.readouterr().out

    return output


@pytest.fixture
def pictures(here):
    """Colour pictures of four classes, and beside them what is none."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (here / "pictures" / name).mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "pictures" / name / f"{index}.png")
    (here / "pictures" / ".trash").mkdir()
    (here / "pictures" / "cats" / "x.gif").write_bytes(b"")
    return here / "pictures"


@pytest.fixture
def run(pictures, tiny_recipe, capfd):
    """A grey run of these classes, trained in the working folder by a relative path."""
    data = {"type": "ImageFolder", "data_root": "pictures", "image_size": 8, "channels": 1, "num_classes": 4}
    tiny_recipe["train_dataloader"]["dataset"] = data
    tiny_recipe["model"]["flow"]["num_classes"] = 4
    tiny_recipe["train_cfg"]["max_iters"] = 1
    Path("tiny.yaml").write_text(dump_yaml(tiny_recipe))
    train("tiny.yaml", options=TrainOptions(Path("run")))
    return Path("run")


def test_training_tells_what_was_read_and_keeps_the_names(run, pictures, capfd):
    line = "data: data_root 'pictures': 12 pictures, 4 classes; left out: 1 hidden folders ('.trash'), "
    assert line + "1 files ending in .gif ('cats/x.gif')\n" in capfd.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["class_names"] == CLASSES and metrics["updates"] == 1
    assert set(metrics["evaluation"]["model"]) == {"accuracy", "fd", "precision", "recall"}
    assert load_recipe(run / "recipe.yaml")["train_dataloader"]["dataset"]["data_root"] == str(pictures)


def test_sampling_by_name_from_another_folder(run, tool, monkeypatch, here):
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    tool("sample", "../run", "--labels", "cats", "0", "number=2", "name=2", "--num", 4, "--out", "x.npz")
    assert np.load("x.npz")["labels"].tolist() == [3, 0, 2, 1]


def test_mistakes_in_labels(run, refused):
    line = refused("sample", run, "--labels", "cat", "--out", "x.png")
    assert line == "error: --labels: found cat, expected 0 to 3 or a class's name; nearest match: 'cats'"
    line = refused("sample", run, "--labels", "2", "--out", "x.png")
    assert line.startswith("error: --labels: '2' is the name of class 1 and the number of another; write name=2 or num")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"class_names": {"cats": 1}}))
    line = refused("sample", run, "--labels", "cats", "--out", "x.png")
    assert line.startswith("error: run/metrics.json: class_names: found {'cats': 1}, expected a list of names; ")


def test_runs_of_before_have_numbers_alone(run, tool, refused):
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["class_names"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert (
        refused("sample", run, "--labels", "cats", "--out", "x.png") == "error: --labels: found cats, expected 0 to 3"
    )
    tool("sample", run, "--labels", 2, "--num", 1, "--out", "x.npz")
    assert np.load("x.npz")["labels"].tolist() == [2]


def test_samples_replace_nothing_unasked(run, tool, refused):
    for out in ("x.png", "x.npz", "x"):
        sample = [run, "--num", 2, "--out", out]
        tool("sample", *sample)
        assert refused("sample", *sample, "--seed", 1).startswith(f"error: --out: '{out}' is there already")
        tool("sample", *sample, "--seed", 1, "--overwrite")
    tool("sample", run, "--labels", 3, "--num", 1, "--out", "x", "--overwrite")
    assert os.listdir("x") == ["000000_class3.png"]


def test_overrides_reach_the_run(run, tool, refused):
    tool("sample", run, "--num", 2, "--out", "x.npz")
    tool("sample", run, "--num", 2, "--out", "y.npz", "--cfg-options", "model.noise_std=0.9")
    assert (np.load("x.npz")["images"] != np.load("y.npz")["images"]).any()
    line = refused("sample", run, "--out", "z.png", "--cfg-options", "model.flow.widht=8")
    assert line == "error: run/recipe.yaml: model.flow.widht: TARFlow has no argument 'widht'; nearest match: 'width'"


def test_an_evaluator_that_cannot_measure_is_told_before_training(pictures, tiny_recipe, refused):
    (pictures / "zebras").mkdir()
    for number in range(8):
        shutil.copytree(pictures / "cats", pictures / f"cats {number}")
    data = {"type": "ImageFolder", "data_root": "pictures", "image_size": 8, "channels": 1, "num_classes": 12}
    tiny_recipe["train_dataloader"]["dataset"] = data
    tiny_recipe["model"]["flow"]["num_classes"] = 12
    Path("tiny.yaml").write_text(dump_yaml(tiny_recipe))
    line = refused("train", "tiny.yaml", "--work-dir", "new")
    assert line.startswith(
        "error: tiny.yaml: evaluation: DigitsEvaluator: found a generator of 12 classes, expected at "
    )


def test_guidance_of_sample_grids_is_told_before_training(pictures, refused):
    run = ["--work-dir", "new", "--cfg-options"]
    line = refused("train", ROOT / "recipes" / "pmf_digits.yaml", *run, "default_hooks.samples.guidance=.nan")
    assert "default_hooks.samples.guidance: found nan, expected a number" in line
    line = refused("train", ROOT / "recipes" / "pmf_digits.yaml", *run, "default_hooks.samples.guidance=0.5")
    assert line.endswith("default_hooks.samples: guidance: found 0.5, expected at least 1")


def test_other_pictures_or_names_are_not_gone_on_with(run, pictures, refused):
    resume = ["tiny.yaml", "--work-dir", run, "--resume", "--cfg-options", "train_cfg.max_iters=2"]
    shutil.copy(pictures / "cats" / "0.png", pictures / "cats" / "3.png")
    assert "was trained with samples 12, this run has samples 13" in refused("train", *resume)
    (pictures / "cats" / "3.png").unlink()
    (pictures / "cats").rename(pictures / "dogs")
    assert "was trained with class_names" in refused("train", *resume)


def test_one_flat_folder_trains_without_classes(pictures, tiny_recipe, tool):
    for file in (pictures / "cats").glob("*.png"):
        file.rename(pictures / f"{file.stem}.PNG")
    for name in CLASSES:
        shutil.rmtree(pictures / name)
    data = {"type": "ImageFolder", "data_root": "pictures", "image_size": 8, "channels": 1, "labels": "none"}
    tiny_recipe["train_dataloader"]["dataset"] = data
    tiny_recipe["model"]["flow"]["num_classes"] = "$data.num_classes"
    tiny_recipe["train_cfg"]["max_iters"] = 1
    Path("tiny.yaml").write_text(dump_yaml(tiny_recipe | {"evaluation": None}))
    run = train("tiny.yaml", options=TrainOptions(Path("flat")))
    assert load_recipe(run / "recipe.yaml")["model"]["flow"]["num_classes"] == 0
    tool("sample", run, "--num", 2, "--out", "x.npz")
    assert np.load("x.npz")["images"].shape == (2, 8, 8, 1)


def test_the_same_folder_by_another_path_is_gone_on_with(run, pictures, tool):
    where = f"train_dataloader.dataset.data_root=../{pictures.parent.name}/pictures"
    tool("train", "tiny.yaml", "--work-dir", run, "--resume", "--cfg-options", "train_cfg.max_iters=2", where)
    assert len((run / "scalars.jsonl").read_text().splitlines()) == 2
