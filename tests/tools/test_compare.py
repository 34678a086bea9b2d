"""tools/compare.py from end to end, and what it refuses."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import started
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(biflow_run, tmp_path_factory):
    """A run and a copy of it."""
    folder = tmp_path_factory.mktemp("compare")
    for name in ("one", "two"):
        shutil.copytree(biflow_run, folder / name)
    return [folder / "one", folder / "two"]


def test_runs_are_drawn_beside_each_other_and_measured_where_they_are_not(runs, tmp_path):
    tool = [sys.executable, ROOT / "tools" / "compare.py", *runs, "--guidance", "0", "2.5", "--out", tmp_path / "a.png"]
    said = started.run(tool, check=True, capture_output=True, text=True).stdout
    assert said.count("nearest training pictures") == 2 and str(tmp_path / "a.png") in said
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 900 and len(picture.convert("L").getcolors()) > 100
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    assert metrics["evaluation, seed 0, guidance 2.5, average None"]["model"]
    assert "evaluation, seed 0, guidance 2.5, average None" not in (runs[0] / "metrics.json").read_text()


def test_a_run_without_evaluation_is_drawn_without_figures(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "bare")
    recipe = tmp_path / "bare" / "recipe.yaml"
    recipe.write_text(re.sub(r"^evaluation:\n(  .*\n)+", "", recipe.read_text(), flags=re.MULTILINE))
    tool = [sys.executable, ROOT / "tools" / "compare.py", tmp_path / "bare", "--out", tmp_path / "a.png"]
    started.run(tool, check=True, capture_output=True)
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--out", "a.jpg"], "--out: found 'a.jpg', expected a name ending in .png"),
        (["--out", "a.png", "--guidance", "1", "2", "3"], "--guidance: found 3 scales, expected one, or one for each"),
    ],
)
def test_what_means_nothing_is_one_line(refused, runs, arguments, problem):
    assert problem in refused("compare", *runs, *arguments)


def test_runs_of_other_data_are_not_compared(refused, runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "other")
    recipe = tmp_path / "other" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("split: train", "split: test", 1))
    assert "other: was trained on other data than" in refused("compare", runs[0], tmp_path / "other", "--out", "a.png")
