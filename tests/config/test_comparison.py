"""Whether two recipes would train the same thing."""

import copy

import pytest

from genflow import ComponentGraph
from genflow.config.comparison import first_difference
from genflow.config.recipe import load_recipe
from genflow.config.upgrade import upgrade

CODEC = {"type": "SDVAE", "image_size": 32}
FLOW = {"type": "TARFlow", "image_size": 4, "channels": 4, "patch_size": 2, "width": 16, "blocks": 2, "layers": 1}
CACHE = {"type": "LatentCache", "data_root": "/here/imagenet", "latent_shape": [4, 4, 4]}
LATENTS = {
    "model": {"type": "MaximumLikelihood", "noise_std": 0.3, "codec": "$codec", "flow": FLOW},
    "components": {"codec": CODEC},
    "train_dataloader": {"dataset": CACHE, "batch_size": 8},
    "train_cfg": {"max_iters": 3},
}


def changed(recipe, **changes):
    """A copy with values at paths, ``__`` between their keys."""
    recipe = copy.deepcopy(recipe)
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = recipe
        for section in sections:
            place = place[section]
        place[key] = value
    return recipe


def difference(found, expected):
    return first_difference(*(ComponentGraph.from_recipe(recipe) for recipe in (found, expected)))


def test_a_shared_component_counts_where_it_is_used():
    std = [4.0, 5.0, 6.0, 7.0]
    other = changed(LATENTS, components__codec={**CODEC, "latent_std": std})
    expected = f"model.codec.latent_std is {std} there and [4.855, 5.319, 3.937, 3.987] here"
    assert difference(other, LATENTS) == expected
    inline = changed(LATENTS, model__codec=CODEC)
    del inline["components"]
    assert difference(inline, LATENTS) is difference(LATENTS, inline) is None


def test_other_data_are_another_recipe(tiny_recipe):
    other = changed(tiny_recipe, train_dataloader__dataset__split="test")
    assert difference(other, tiny_recipe) == "train_dataloader.dataset.split is 'test' there and 'train' here"
    none = changed(tiny_recipe, train_dataloader=None)
    assert difference(none, tiny_recipe).startswith("train_dataloader.dataset is None there and {'type': 'Digits'")
    other = changed(LATENTS, train_dataloader__dataset__flip=False)
    assert difference(LATENTS, other) == "train_dataloader.dataset.flip is True there and False here"


@pytest.mark.parametrize(
    "same",
    [
        {"model__flow__norm": "layer", "model__label_drop": 0.1, "model__flow__bound": None},
        {"train_dataloader__dataset": {"type": "Digits"}},
        {"model__flow__layers": 1, "seed": 4, "train_cfg__max_iters": 99, "ema": {}, "evaluation": None},
        {
            "train_dataloader__batch_size": 3,
            "optim_wrapper__optimizer": {"type": "SGD", "lr": 1},
            "published": {"a": 1},
        },
    ],
    ids=["defaults written out", "default left out", "length and seed", "batches and rate"],
)
def test_what_trains_the_same_thing_is_accepted(tiny_recipe, same):
    other = changed(tiny_recipe, **same)
    assert difference(other, tiny_recipe) is difference(tiny_recipe, other) is None


def test_an_argument_that_only_one_of_them_gives_differs_from_its_default(tiny_recipe):
    other = changed(tiny_recipe, model__flow__bound=3.0)
    assert difference(other, tiny_recipe) == "model.flow.bound is 3.0 there and None here"
    assert difference(tiny_recipe, other) == "model.flow.bound is None there and 3.0 here"


def test_another_type_is_told_before_its_arguments(tiny_recipe):
    other = changed(tiny_recipe, model__flow={"type": "CouplingFlow", "dimensions": 64, "width": 8, "blocks": 2})
    assert difference(other, tiny_recipe) == "model.flow.type is 'CouplingFlow' there and 'TARFlow' here"


def test_of_files_and_folders_only_the_names_count():
    moved = changed(LATENTS, train_dataloader__dataset__data_root="/there/data/imagenet/")
    assert difference(moved, LATENTS) is None
    other = changed(LATENTS, train_dataloader__dataset__data_root="/here/imagenet100")
    expected = "train_dataloader.dataset.data_root is 'imagenet100' there and 'imagenet' here"
    assert difference(other, LATENTS) == expected
    weights = changed(LATENTS, components__codec__weights="/models/vae")
    assert difference(weights, LATENTS) is difference(LATENTS, weights) is None  # not given, it could be any
    other = changed(LATENTS, components__codec__weights="vae2")
    assert difference(weights, other) == "model.codec.weights is 'vae' there and 'vae2' here"


def test_prerequisites_count_with_all_that_they_train(tiny_file):
    student = {
        "model": {
            "type": "BiFlow",
            "teacher": "$teacher",
            "codec": {"type": "Identity", "image_size": 8, "channels": 1},
            "noise_std": 0.3,
            "inverse": {
                "type": "NaiveDistillation",
                "backbone": {
                    "type": "GroupedMLP",
                    "image_size": 8,
                    "channels": 1,
                    "width": 8,
                    "groups": 2,
                    "layers": 1,
                },
            },
            "reconstruction": {"type": "SquaredError"},
        },
        "prerequisites": {"teacher": {"name": "tiny", "recipe": load_recipe(tiny_file)}},
    }
    other = changed(student, prerequisites__teacher__recipe__model__flow__head_width=16)
    assert difference(other, student) == "model.teacher.model.flow.head_width is 16 there and 8 here"
    other = changed(student, prerequisites__teacher__recipe__train_dataloader__dataset__split="test")
    assert difference(other, student) == "model.teacher.train_dataloader.dataset.split is 'test' there and 'train' here"
    renamed = changed(student, prerequisites__teacher__name="moved", prerequisites__teacher__run="elsewhere")
    assert difference(renamed, student) is None


def test_an_older_recipe_of_the_same_network_is_the_same(tiny_recipe):
    backbone = {"type": "LightningDiT", "image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    model = {
        "type": "Drifting",
        "backbone": {**backbone, "channels": 1, "num_classes": 10},
        "field": {"type": "DriftingField"},
        "codec": tiny_recipe["model"]["codec"],
        "labels_per_update": 4,
    }
    recipe = changed(tiny_recipe, model=model)
    older = changed(recipe, model__backbone__checkpointing=True)
    upgrade(older)
    assert older["train_cfg"]["checkpointing"] is True and difference(older, recipe) is None
