"""Figures that tools write where they are wanted: never over what lies there, and known before the work."""

import os
import sys
from pathlib import Path

import pytest
import started

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "flow_toy.yaml")


def refused(*arguments):
    """The one line with which a tool refuses."""
    done = started.run(
        [sys.executable, ROOT / "tools" / arguments[0], *map(str, arguments[1:])],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("tool", [["analyze_flops.py", RECIPE], ["benchmark.py", "inverse", RECIPE]])
def test_json_replaces_nothing_unasked(tool, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"mine")
    assert f"--json: '{picture}' is there already; --overwrite replaces it" in refused(*tool, "--json", picture)
    assert picture.read_bytes() == b"mine"
    assert f"--json: '{tmp_path}' is a folder" in refused(*tool, "--json", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    pipe = refused(*tool, "--json", tmp_path / "pipe", "--overwrite")
    assert "is a pipe or a device" in pipe


def test_a_recipe_is_a_file(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    (tmp_path / "recipe.yaml").write_text("_base_: pipe.yaml\n")
    assert refused("show_recipe.py", pipe) == f"error: {pipe}: not a readable recipe: found a pipe or a device\n"
    assert "_base_: 'pipe.yaml' does not exist" in refused("show_recipe.py", tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0", "0"], "--seeds: found 0 0, expected different numbers"),
        (["--seeds", "-1"], "--seeds: found -1"),
        (["--seeds", str(2**64)], f"--seeds: found {2**64}"),
        (["--processes", "0"], "--processes: found 0, expected at least 1"),
    ],
)
def test_numbers_of_reproduce(arguments, message, tmp_path):
    assert message in refused("reproduce.py", "biflow", "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
