"""The built wheel works away from the checkout: commands, recipes, help."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import genflow
from genflow.config.recipe_files import RECIPES, recipe_file
from genflow.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds, scripts in ``bin/``."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("genflow", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    wheel = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(wheel, check=True, capture_output=True, cwd=folder)
    (built,) = folder.glob("genflow-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", folder / "here", built], check=True, capture_output=True)
    names = zipfile.ZipFile(built).namelist()
    assert f"genflow-{genflow.__version__}-" in built.name
    assert sorted(Path(name).name for name in names if re.fullmatch(r"genflow/recipes/[^/]+", name)) == sorted(
        path.name for path in (ROOT / "recipes").glob("*.yaml")
    )
    assert not [name for name in names if name.startswith(("tests", "tools", "recipes"))]
    return folder / "here"


def test_every_command_is_a_script_and_a_tool(installed):
    scripts = {path.name for path in (installed / "bin").iterdir()}
    commands = {path.stem for path in (ROOT / "genflow" / "commands").glob("[a-z]*.py")}
    assert scripts == {f"genflow-{name.replace('_', '-')}" for name in commands}
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == commands


def _run(installed: Path, folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, installed / "bin" / script, *arguments]
    environment = {"PYTHONPATH": str(installed)}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)


def test_a_recipe_of_the_package_by_its_name(installed, tmp_path):
    done = _run(installed, tmp_path, "genflow-show-recipe", "pmf_digits")
    assert done.returncode == 0 and "MeanFlow" in done.stdout, done.stderr
    assert str(ROOT) not in done.stdout
    wrong = _run(installed, tmp_path, "genflow-show-recipe", "pmf_digts")
    assert wrong.returncode == 2 and "nearest match: 'pmf_digits'" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_help_names_the_script(installed, tmp_path):
    done = _run(installed, tmp_path, "genflow-sample", "--help")
    assert done.returncode == 0 and done.stdout.rstrip().splitlines()[-1].strip().startswith("genflow-sample ")


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("pmf_digits") == str(RECIPES / "pmf_digits.yaml")
    for path in ("./pmf_digits", "pmf_digits.yaml", "folder/pmf_digits", str(tmp_path)):
        assert recipe_file(path) == path
    with pytest.raises(UserError, match="nearest match: 'biflow_digits'"):
        recipe_file("biflow_digit")
    (tmp_path / "pmf_digits").touch()
    assert recipe_file("pmf_digits") == "pmf_digits"
