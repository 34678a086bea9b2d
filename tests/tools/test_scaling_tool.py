"""``tools/scaling.py``: a table to paste, the same figures as JSON, and mistakes in one line."""

import json
import runpy
import sys

import pytest
from conftest import ROOT

RECIPE = ROOT / "recipes" / "drift_toy_far.yaml"


def test_tables_and_figures(here, monkeypatch, capfd):
    options = [
        "--gpus",
        "1",
        "2",
        "--recipe-gpus",
        "1",
        "--json",
        "found.json",
        "--cfg-options",
        "train_cfg.max_iters=50",
    ]
    monkeypatch.setattr(sys, "argv", ["tools/scaling.py", str(RECIPE), *options])
    runpy.run_path(str(ROOT / "tools" / "scaling.py"), run_name="__main__")
    said = capfd.readouterr().out
    (found,) = json.loads((here / "found.json").read_text())
    assert (found["recipe"], found["gpus"], found["rows"], found["updates"]) == ("drift_toy_far", 1, 1, 50)
    assert found["hours"] == pytest.approx(50 * found["seconds"] / 3600)
    assert found["host_bound"] and found["sharded"]["float32"] == found["communication"] == 0
    lines = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("| drift_toy_far")]
    assert [len(line) for line in lines] == [12, 12] and "host" in lines[0][5]
    refusal = "drift_toy_far, 2 GPUs: model.labels_per_update: found 1, expected a multiple of the 2 processes"
    assert refusal in said.splitlines()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpus", "8", "0"], "--gpus: found 0"),
        (["--share", "1.5"], "--share: found 1.5"),
        (["--launch", "nan"], "--launch: found nan"),
        (["--recipe-gpus", "-1"], "--recipe-gpus: found -1"),
        (["--cfg-options", "model.backbone.widht=3"], "model.backbone.widht: MLP has no argument"),
    ],
)
def test_mistakes_are_one_line(refused, options, expected):
    assert expected in refused("scaling", RECIPE, *options)
