"""Numbers that only the data know, said once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.config.graph import ComponentGraph
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.runs.folder import RunFolder

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = """
_base_: {recipes}/pmf_digits.yaml
train_dataloader:
  dataset: {{_delete_: true, type: ImageFolder, data_root: {data}, image_size: 8, num_classes: 3, channels: 1}}
  batch_size: 4
model:
  backbone: {{num_classes: $data.num_classes, image_size: $data.image_size, channels: $data.channels}}
  codec: {{image_size: $data.image_size}}
train_cfg: {{max_iters: 2}}
default_hooks: {{samples: {{per_class: 1, classes: $data.num_classes}}}}
evaluation: null
"""


@pytest.fixture
def recipe(tmp_path):
    for name in ("ants", "bees", "wasps"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE.format(recipes=RECIPES, data=tmp_path / "pictures"))
    return path


def test_the_number_of_classes_is_said_by_the_data(recipe):
    plain = ComponentGraph.load(recipe).plain
    assert plain["model"]["backbone"]["num_classes"] == 3
    assert plain["model"]["backbone"]["image_size"] == plain["model"]["codec"]["image_size"] == 8
    assert plain["model"]["backbone"]["channels"] == 1
    assert plain["default_hooks"]["samples"]["classes"] == 3


def test_what_the_recipe_states_needs_no_data(recipe):
    (recipe.parent / "pictures").rename(recipe.parent / "moved")
    assert ComponentGraph.load(recipe).plain["model"]["backbone"]["num_classes"] == 3


def test_the_data_are_asked_for_the_rest(recipe):
    overrides = ["train_dataloader.dataset={type: Digits}", "model.codec.image_size=$data.image_size"]
    plain = ComponentGraph.load(recipe, overrides).plain
    assert plain["model"]["backbone"]["num_classes"] == 10 and plain["model"]["codec"]["image_size"] == 8


def test_folders_and_one_folder_say_how_many_classes_there_are(recipe):
    folder = f"type: ImageFolder, data_root: {recipe.parent / 'pictures'}, image_size: 8, channels: 1"
    for options, classes in (("", 3), (", labels: none", 0), (", num_classes: 0", 0)):
        overrides = [f"train_dataloader.dataset={{{folder}{options}}}", "default_hooks.samples.classes=1"]
        assert ComponentGraph.load(recipe, overrides).plain["model"]["backbone"]["num_classes"] == classes


def test_a_run_opens_and_goes_on_without_asking_again(recipe, tmp_path):
    run = train(recipe, options=TrainOptions(tmp_path / "run"))
    (tmp_path / "pictures").rename(tmp_path / "moved")
    assert RunFolder(run).is_complete and ComponentGraph.load(run / "recipe.yaml").plain["model"]["backbone"]
    (tmp_path / "moved").rename(tmp_path / "pictures")
    train(recipe, {"train_cfg.max_iters": 3}, options=TrainOptions(run, "auto"))
    assert RunFolder(run).metrics["updates"] == 3


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["model.backbone.num_classes=$data.num_clases"], "model.backbone.num_classes: found '$data.num_clases'"),
        (["model.backbone.num_classes=$data.num_clases"], "nearest match: 'num_classes'"),
        (["train_dataloader.dataset.num_classes=$data.num_classes"], "the data cannot be asked about themselves"),
        (["train_dataloader=null"], "there is no train_dataloader.dataset"),
        (
            ["train_dataloader.dataset={type: LatentCache, data_root: nowhere, latent_shape: [1, 8, 8]}"],
            "train_dataloader.dataset: data_root 'nowhere'",
        ),
        (["train_dataloader.dataset.size=3"], "train_dataloader.dataset.size"),
        (["train_dataloader.dataset={type: ConvNet}"], "train_dataloader.dataset"),
        (["model.backbone.width=$data.num_classes"], "model.backbone"),  # 3 is no width for 4 heads
    ],
)
def test_what_cannot_be_answered_is_one_line(recipe, overrides, problem):
    with pytest.raises(UserError) as caught:
        ComponentGraph.load(recipe, overrides).build()
    assert problem in str(caught.value) and str(caught.value).startswith(str(recipe))
