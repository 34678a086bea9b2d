"""What a recipe calls things is text to the tools, in any terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genflow.config.recipe import dump_yaml

ROOT = Path(__file__).parents[2]


def show(path, **environment):
    command = [sys.executable, str(ROOT / "tools" / "show_recipe.py"), str(path)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, check=False, timeout=120, env=env)


def recipe(folder, tiny_recipe, name):
    codec = tiny_recipe["model"]["codec"]
    tiny_recipe |= {"components": {name: codec}, "model": {**tiny_recipe["model"], "codec": f"${name}"}}
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(tiny_recipe), encoding="utf-8")
    return path


@pytest.mark.slow
def test_brackets_are_no_markup(tmp_path, tiny_recipe):
    path = recipe(tmp_path, tiny_recipe, "[bold red]x[link=file:a]")
    done = show(path)
    assert done.returncode == 0, done.stderr
    assert "components.[bold red]x[link=file:a]" in done.stdout.decode().replace("\n", "")


@pytest.mark.slow
def test_names_that_the_terminal_cannot_write(tmp_path, tiny_recipe):
    path = recipe(tmp_path, tiny_recipe, "\u00fcn\u00ef\u4e2d")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = show(path, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert b"components.\\xfcn\\xef\\u4e2d" in done.stdout
    missing = tmp_path / "\u00fc.yaml"
    done = show(missing, **ascii_only)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and b"no such recipe" in done.stderr
