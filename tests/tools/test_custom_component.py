"""docs/custom_components.md, followed to the letter in a folder of its own."""

import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import started
import torch
from PIL import Image

from genflow import registry
from genflow.config.recipe import load_recipe
from genflow.config.yaml_text import parse_yaml
from genflow.errors import UserError
from genflow.weights import read_weights

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "custom_components.md").read_text(encoding="utf-8")
TEACHER = "prerequisites.teacher.recipe"
TINY = [
    "train_cfg.max_iters=2",
    "train_dataloader.batch_size=8",
    "default_hooks.samples={per_class: 1}",
    "evaluation=null",
    *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "layers=1", "groups=2")),
    "model.inverse.backbone.denoise_layers=1",
    f"{TEACHER}.train_cfg.max_iters=1",
    f"{TEACHER}.evaluation=null",
    f"{TEACHER}.default_hooks.samples.per_class=1",
    *(f"{TEACHER}.model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
]
# Leaves a mark of the class that training calls, and with what.
SPY = """
_forward = Charbonnier.forward


def _spied(self, prediction, target):
    with open("calls", "a") as file:
        file.write(f"{self.epsilon} {tuple(prediction.shape)}\\n")
    return _forward(self, prediction, target)


Charbonnier.forward = _spied
"""


def blocks(language):
    """The document's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


def command(start):
    """The document's command line that begins so, as arguments for this interpreter."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    name, *arguments = shlex.split(next(line for line in lines if line.startswith(start)))
    assert name == "python"
    return [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]


def run(arguments, folder):
    done = started.run(arguments, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The document's module and recipe beside ``recipes/``, trained for two updates with its overrides."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    module, recipe = blocks("python")[0], blocks("yaml")[0]
    (folder / "charbonnier.py").write_text(module + SPY)
    (folder / "charbonnier_digits.yaml").write_text(recipe)
    overriding = command("python tools/train.py charbonnier_digits.yaml --work-dir")
    assert "--cfg-options" in overriding[:-2]  # further options follow the document's
    run([*overriding, *TINY], folder)
    return folder


def test_the_names_in_the_text_are_those_of_the_code():
    recipe = blocks("yaml")[0]
    assert "Save this as `charbonnier.py`" in TEXT and "custom_imports: [charbonnier]" in recipe
    assert "`charbonnier_digits.yaml`" in TEXT and "work_dirs/charbonnier_digits" in TEXT


def test_training_uses_the_component_and_the_overrides(project):
    calls = (project / "calls").read_text().splitlines()
    # Two terms of the inverse's own loss and the reconstruction, all by the component; of a few samples before
    # training starts, and in two updates.
    assert calls == ["0.001 (4, 1, 8, 8)"] * 3 + ["0.001 (8, 1, 8, 8)"] * 6
    lines = [json.loads(line) for line in (project / "work_dirs/sharper/scalars.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(0 < line["reconstruction"] < 3 for line in lines)


def test_the_run_folder_is_complete(project):
    work_dir = project / "work_dirs" / "sharper"
    assert "custom_imports:\n- charbonnier\n" in (work_dir / "recipe.yaml").read_text()
    assert read_weights(work_dir / "generator.safetensors")
    assert json.loads((work_dir / "metrics.json").read_text())["updates"] == 2
    assert [path.name for path in (work_dir / "samples").iterdir()] == ["step_00000002.png"]
    assert [path.name for path in (work_dir / "checkpoints").iterdir()] == ["step_00000002.pt"]


def test_sampling_from_the_run(project):
    sampling = command("python tools/sample.py work_dirs/charbonnier_digits")
    place = sampling.index("work_dirs/charbonnier_digits")
    assert "64 images" in run([*sampling[:place], "work_dirs/sharper", *sampling[place + 1 :]], project)
    assert Image.open(project / "grid.png").width > 8 * 64


def test_the_recipe_replaces_one_slot_of_its_base(project):
    recipe = load_recipe(project / "charbonnier_digits.yaml")
    base = load_recipe(ROOT / "recipes" / "biflow_digits.yaml")
    assert recipe["model"].pop("reconstruction") == {"type": "Charbonnier", "epsilon": 0.01}
    assert recipe.pop("custom_imports") == ["charbonnier"]
    base["model"].pop("reconstruction")
    assert recipe == base


def test_the_table_names_every_contract_and_registry():
    rows = re.findall(r"^\| ([a-z ]+) \| `(.+)` \| `([A-Z_]+)` \|$", TEXT, re.M)
    assert {kind for kind, _, _ in rows} == set(registry.KINDS)
    for kind, contracts, name in rows:
        assert getattr(registry, name) is registry.KINDS[kind]
        for contract in contracts.split("`, `"):
            module, _, cls = contract.rpartition(".")
            found = getattr(importlib.import_module(module), cls)
            assert getattr(found, "kind", kind) == kind


def test_the_table_leaves_no_contract_out():
    contracts = set()
    for path in (ROOT / "genflow").glob("*/*.py"):
        module = importlib.import_module(f"genflow.{path.parent.name}.{path.stem}")
        contracts |= {
            f"{cls.__module__}.{cls.__name__}"
            for cls in vars(module).values()
            if isinstance(cls, type)
            and (path.stem == "base" or cls.__name__ == "Feed")
            and cls.__module__ == module.__name__
            and (getattr(cls, "kind", None) in registry.KINDS or cls.__name__ in ("Generator", "Feed"))
        }
    # A kind whose families have different inputs has no component of its own.
    families = {"genflow.field_estimators.base.FieldEstimator", "genflow.guidance.base.Guidance"}
    assert families < contracts and len(contracts) > 15
    assert {name for name in contracts if f"`{name}`" not in TEXT} == families


def test_the_data_set_of_the_document():
    from genflow.draws import Draws

    namespace = {"__name__": "stripes_in_a_test"}
    exec(compile(blocks("python")[1], "stripes.py", "exec"), namespace)
    try:
        stripes = registry.DATASETS.build({"type": "Stripes", "size": 6})
        plain = stripes.batch(torch.arange(6), None)
        assert len(stripes) == 6 and plain["images"].shape == (6, *stripes.image_shape)
        assert plain["labels"].tolist() == [0, 1] * 3 and plain["images"].dtype == torch.float32
        assert plain["images"][1, 0, 0].tolist() == [-1.0, -1.0, 1.0, 1.0] * 2
        draws = Draws(0, torch.arange(6), 6)
        whole, part = (stripes.batch(torch.arange(6)[rows], draws[rows])["images"] for rows in (slice(6), slice(2, 4)))
        assert not whole.equal(plain["images"]) and whole[2:4].equal(part)
    finally:
        del registry.DATASETS._module_dict["Stripes"], registry.DATASETS.parent._module_dict["Stripes"]


def test_the_transform_of_the_document(tmp_path):
    from genflow.config.slots import check_component
    from genflow.data import ImageFolder
    from genflow.data.pipeline import TransformSlot
    from genflow.draws import Draws

    namespace = {"__name__": "fading_in_a_test"}
    exec(compile(blocks("python")[2], "fading.py", "exec"), namespace)
    try:
        (recipe,) = (block for block in blocks("yaml") if "fading" in block)
        data = parse_yaml(recipe, "recipe")["train_dataloader"]["dataset"]
        assert [node.kind for node in check_component(data, "p").arguments["pipeline"]] == [TransformSlot.kind] * 3
        (tmp_path / "a").mkdir()
        Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "a" / "0.png")
        dataset = ImageFolder(str(tmp_path), 4, pipeline=[namespace["Fade"](most=0.3)])
        shares = 0.3 * Draws(0, torch.arange(5)).uniform("fade")
        images = dataset.batch(torch.zeros(5, dtype=torch.int64), Draws(0, torch.arange(5)))["images"]
        assert torch.allclose((images[:, 2, 0, 0] + 1) * 127.5, 30 * (1 - shares) + 255 * shares, atol=0.51)
    finally:
        for place in (registry.TRANSFORMS, registry.TRANSFORMS.parent):
            del place._module_dict["Fade"]


def test_the_document_tells_the_truth_about_mistakes():
    from genflow.config.slots import check
    from genflow.losses.base import Loss

    namespace = {"__name__": "charbonnier_in_a_test"}
    exec(compile(blocks("python")[0], "charbonnier.py", "exec"), namespace)
    try:
        for config, message in (
            ({"type": "Charbonnier", "epsilon": "small"}, "p.epsilon: found 'small', expected a number"),
            ({"type": "Charbonnier", "epsilom": 1}, "p.epsilom: Charbonnier has no argument 'epsilom'; nearest"),
            ({"type": "TARFlow"}, "p.type: found 'TARFlow', which is a flow teacher, expected a loss"),
        ):
            with pytest.raises(UserError) as caught:
                check(config, Loss, "p")
            assert str(caught.value).startswith(message)
    finally:
        del registry.LOSSES._module_dict["Charbonnier"], registry.MODELS._module_dict["Charbonnier"]
