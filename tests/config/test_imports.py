"""Modules that recipes name: nothing is imported without consent, and what is says so."""

import runpy
import sys
from pathlib import Path

import pytest

from genflow import ComponentGraph, UserError, open_run
from genflow.config.imports import Imports
from genflow.config.recipe import dump_yaml
from genflow.engine.train import TrainOptions, train

ROOT = Path(__file__).parents[2]
BODY = """
from pathlib import Path
from genflow.data.base import Dataset
from genflow.data.digits import Digits
from genflow.registry import DATASETS

Path({mark!r}).write_text("run")


@DATASETS.register_module(force=True)
class Marked(Digits):
    def __init__(self, split: str = "train"):
        super().__init__("train")
        self.text = split
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module that leaves a mark when it is run; forgets it after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = []

    def write(name, folder=tmp_path):
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BODY.format(mark=str(tmp_path / f"mark_{name}")))
        names.append(name)
        return tmp_path / f"mark_{name}"

    yield write
    from genflow.registry import DATASETS

    for name in names:
        sys.modules.pop(name, None)
    for registry in (DATASETS, DATASETS.parent):
        registry._module_dict.pop("Marked", None)


def recipe(folder, tiny_recipe, *modules, **changes):
    path = folder / "recipe.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump_yaml({**tiny_recipe, "custom_imports": list(modules), **changes}))
    return path


def refused(action):
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert message.isprintable()
    return message


def as_run(path):
    """A folder that looks like a finished run."""
    (path.parent / "generator.safetensors").touch()
    return path.parent


def test_opening_a_run_imports_nothing_and_says_what_it_wants(module, tmp_path, tiny_recipe, monkeypatch):
    mark = module("downloaded.evil_a")
    monkeypatch.chdir(tmp_path)
    run = as_run(recipe(tmp_path / "downloaded", tiny_recipe, "downloaded.evil_a"))
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(lambda: open_run(run))
    assert message.startswith(f"{run}/recipe.yaml: custom_imports: wants to import downloaded.evil_a; importing runs")
    assert "--allow-imports" in message and not mark.exists() and "downloaded.evil_a" not in sys.modules
    assert refused(lambda: open_run(run, allow_imports=["downloaded.evil", "other"])) == message
    open_run(run, allow_imports=["downloaded"])
    assert mark.exists()


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("sample", ["run", "--out", "x.png"]),
        ("evaluate", ["run"]),
        ("edit", ["run", "inpaint", "--mask", "bottom", "--out", "x.png"]),
        ("show_recipe", ["run/recipe.yaml"]),
        ("analyze_flops", ["run/recipe.yaml"]),
        ("benchmark", ["inverse", "run"]),
        ("benchmark", ["train-step", "run/recipe.yaml"]),
        ("benchmark", ["drift-loss", "run/recipe.yaml"]),
    ],
)
def test_no_tool_that_looks_imports(tool, arguments, module, tmp_path, tiny_recipe, monkeypatch, capsys):
    mark = module("evil_b")
    as_run(recipe(tmp_path / "run", tiny_recipe, "evil_b"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    errors = capsys.readouterr().err
    assert stopped.value.code == 2 and "custom_imports: wants to import evil_b; " in errors, errors
    assert errors.count("\n") == 1 and not mark.exists()


def test_consent_on_the_command_line(module, tmp_path, tiny_recipe, monkeypatch, capsys):
    mark = module("fine_c")
    recipe(tmp_path / "run", tiny_recipe, "fine_c")
    monkeypatch.chdir(tmp_path)  # the module lies in the working folder
    monkeypatch.setattr(sys, "argv", ["show_recipe.py", "run/recipe.yaml", "--allow-imports"])
    runpy.run_path(str(ROOT / "tools" / "show_recipe.py"), run_name="__main__")
    assert mark.exists()
    assert f"run/recipe.yaml: imported fine_c from {tmp_path / 'fine_c.py'}\n" in capsys.readouterr().out


def test_modules_named_by_an_override_are_consented_to(module, tmp_path, tiny_recipe, monkeypatch):
    mark = module("fine_d")
    path = recipe(tmp_path, tiny_recipe)
    ComponentGraph.load(path, ["custom_imports=[fine_d]"])
    assert mark.exists()
    mark.unlink()
    ComponentGraph.load(path, ["custom_imports=[fine_d]"])
    ComponentGraph.load(recipe(tmp_path, tiny_recipe, "fine_d"))  # imported already
    assert not mark.exists()


def test_genflows_own_modules_are_fine(tmp_path, tiny_recipe):
    ComponentGraph.load(recipe(tmp_path, tiny_recipe, "genflow.reproduction.drift_toy", "genflow.analysis.drift_toy"))


@pytest.mark.parametrize("name", ["", ".evil", "genflow..evil", "../evil", "a b", "evil.", "genflow/evil", "1"])
def test_what_is_no_name_of_a_module(name, tmp_path, tiny_recipe):
    path = recipe(tmp_path, tiny_recipe, name)
    message = refused(lambda: ComponentGraph.load(path, allow_imports=True))
    assert message == f"{path}: custom_imports: found {name!r}, expected the name of a module"


def test_prerequisites_need_consent_too(module, tmp_path, tiny_recipe):
    mark = module("evil_e")
    inner = {**tiny_recipe, "custom_imports": ["evil_e"]}
    prerequisites = {"t": {"name": "t", "recipe": inner}}
    path = recipe(tmp_path, tiny_recipe, prerequisites=prerequisites)
    message = refused(lambda: ComponentGraph.load(path))
    assert message.startswith(f"{path}: prerequisites.t.recipe: custom_imports: wants to import evil_e; ")
    assert not mark.exists()


def test_training_imports_from_the_recipes_folder_and_not_from_the_working_folder(
    module, tmp_path, tiny_recipe, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = {"dataset": {"type": "Marked"}, "batch_size": 8}
    tiny_recipe |= {"train_cfg": {"max_iters": 1}, "train_dataloader": data}
    del tiny_recipe["evaluation"]
    mark = module("strange_f", tmp_path / "elsewhere")
    own = recipe(tmp_path / "own", tiny_recipe, "strange_f")
    message = refused(lambda: train(own))
    assert message.startswith(
        f"{own}: custom_imports: cannot import 'strange_f' from PYTHONPATH, {own.parent}: No module"
    )
    assert not mark.exists()
    mark = module("fine_f", own.parent)
    folder = train(recipe(tmp_path / "own", tiny_recipe, "fine_f"), options=TrainOptions(tmp_path / "run"))
    assert mark.exists()
    assert f"{own}: imported fine_f from {own.parent / 'fine_f.py'}\n" in capsys.readouterr().out
    # What it resumes may not import more than the recipe that is passed.
    text = (folder / "recipe.yaml").read_text().replace("- fine_f\n", "- fine_f\n- strange_f\n")
    (folder / "recipe.yaml").write_text(text)
    message = refused(lambda: train(own, options=TrainOptions(folder, resume="auto")))
    assert "custom_imports: wants to import strange_f; " in message


def test_a_finished_prerequisite_is_only_compared(module, tmp_path, tiny_recipe, finished_run, monkeypatch):
    from shutil import copytree

    from genflow.config.recipe import load_recipe
    from genflow.engine.preflight import check_prerequisite
    from genflow.runs.folder import RunFolder

    mark = module("evil_g")
    monkeypatch.syspath_prepend(tmp_path)
    run = Path(copytree(finished_run, tmp_path / "run"))
    expected = ComponentGraph.load(run / "recipe.yaml")
    (run / "recipe.yaml").write_text(dump_yaml({**load_recipe(run / "recipe.yaml"), "custom_imports": ["evil_g"]}))
    message = refused(lambda: check_prerequisite(RunFolder(run), expected, "here"))
    assert "wants to import evil_g; " in message and not mark.exists()


def test_text_of_own_components_is_text(module, tmp_path, tiny_recipe):
    module("fine_h")
    data = {"dataset": {"type": "Marked"}, "batch_size": 8}
    path = recipe(tmp_path, {**tiny_recipe, "train_dataloader": data}, "fine_h")
    graph = ComponentGraph.load(path, ["train_dataloader.dataset.split=my photos #1"], allow_imports=True)
    assert graph.plain["train_dataloader"]["dataset"]["split"] == "my photos #1"


def test_allowed_names_take_in_what_lies_inside_them():
    imports = Imports(["a.b"])
    assert imports._allows("a.b") and imports._allows("a.b.c")
    assert not imports._allows("a") and not imports._allows("a.bc")
