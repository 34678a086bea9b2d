"""What annotations allow beside a type: ranges, lengths, order, names of files; and text where text is meant."""

import dataclasses
from typing import Annotated

import pytest

from genflow import ComponentGraph, UserError
from genflow.config.overrides import annotation_at
from genflow.config.recipe import dump_yaml, load_recipe
from genflow.config.sections import RecipeSections
from genflow.config.slots import Mismatch, check
from genflow.ranges import (
    Above0,
    Ascending,
    Betas,
    Depth,
    Interval,
    Length,
    LocalPath,
    NotNegative,
    PlainName,
    Positive,
    Range,
    Share,
)

NAMES = [
    "a/b",
    "a/../../other/generator",
    "../pwn",
    "..",
    ".",
    ".hidden",
    "",
    "/abs",
    "a\\b",
    "a\nb",
    "a\0b",
    " a",
    "x" * 101,
]
NAMES += ["\u00e9" * 51, "a\u2028b", "\ud800"]


def refused(path, *overrides):
    with pytest.raises(UserError) as caught:
        ComponentGraph.load(path, overrides)
    message = str(caught.value)
    assert message.isprintable() and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "words"),
    [
        (Positive, 1, 0, "an integer of at least 1"),
        (Positive, 2**31 - 1, 2**31, "an integer of at most 2147483647"),
        (NotNegative, 0, -1, "an integer of at least 0"),
        (Depth, 1024, 1025, "an integer from 1 to 1024"),
        (Share, 1, 1.1, "a number from 0 to 1"),
        (Above0, 1e-9, 0, "a number above 0"),
        (Annotated[float, Range(low=0, below=1)], 0, 1, "a number of at least 0 and below 1"),
        (Annotated[float, Range(above=0, below=1)], 0.5, 1, "a number above 0 and below 1"),
        (Annotated[float, Range(high=0)], -1, 1, "a number of at most 0"),
        (Annotated[list[int], Length()], [1], [], "a list that is not empty"),
        (Annotated[list[int], Length(2)], [1, 2], [1], "a list of at least 2 entries"),
        (Annotated[list[int], Length(1, 2)], [1, 2], [1, 2, 3], "a list of 1 to 2 entries"),
        (Annotated[list[int], Ascending()], [1, 1], [2, 1], "a list that ascends"),
        (Annotated[list[int], Ascending(strictly=True)], [1, 2], [1, 1], "a list that ascends"),
        (Interval, [0.2, 1], [1.0, 0.2], "a list that ascends"),
        (LocalPath, "a", "", "text that is not empty"),
        (Depth | Annotated[list[Depth], Length()], [1], [], "an integer from 1 to 1024 or a list that is not empty"),
        (Positive | None, None, 2**40, "an integer of at most 2147483647 or null"),
    ],
)
def test_limits(annotation, good, bad, words):
    check(good, annotation, "path")
    with pytest.raises(Mismatch) as caught:
        check(bad, annotation, "path")
    assert str(caught.value) == f"path: found {bad!r}, expected {words}"


def test_nothing_is_between_nan():
    nan = float("nan")
    assert not any(limit.__contains__(nan) for limit in (Range(), Range(low=0), Range(above=0), Range(below=1)))


@pytest.mark.parametrize("betas", [[2, 3], [0.9, 1], [-0.1, 0.9], [0.9]])
def test_betas(betas):
    with pytest.raises(Mismatch, match=r"^path"):
        check(betas, Betas, "path")


# Names


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_becomes_a_file_is_one_plain_part(name):
    with pytest.raises(Mismatch, match="expected text that can name a file: 1 to 100 bytes"):
        check(name, PlainName, "path")


@pytest.mark.parametrize("name", ["main", "half_life_6k", "a b", "0.999", "\u00e9", "a.b", "-x", "x" * 100])
def test_other_names_are_fine(name):
    assert check(name, PlainName, "path") == name


@pytest.mark.parametrize("name", ["a/../../other/generator", "../../pwn", ".x"])
def test_every_name_of_a_recipe_that_becomes_a_file(name, tiny_recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    nested = {"recipe": tiny_recipe, "name": "fine"}
    for section, value, place in (
        ("ema", {name: {"decay": 0.9}}, f"ema.{name}"),
        ("components", {name: {"type": "SquaredError"}}, f"components.{name}"),
        ("prerequisites", {name: nested}, f"prerequisites.{name}"),
        ("prerequisites", {"t": {**nested, "name": name}}, "prerequisites.t.name"),
    ):
        path.write_text(dump_yaml({**tiny_recipe, section: value}))
        assert refused(path).startswith(f"{place}: found {name!r}, expected text that can name a file"), section


# Values without a meaning


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.noise_std=.nan", "model.noise_std: found nan, expected a number; it must be finite"),
        ("model.guidance=.inf", "model.guidance: found inf, expected a number; it must be finite"),
        (
            "default_hooks.samples.guidance=.nan",
            "default_hooks.samples.guidance: found nan, expected a number; it must",
        ),
        ("published.params_m=.nan", "published.params_m: found nan, expected a number; it must be finite"),
        ("model.flow.layers=[]", "model.flow.layers: found [], expected an integer from 1 to 1024 or a list that is"),
        ("model.flow.blocks=1000000000", "model.flow.blocks: found 1000000000, expected an integer from 1 to 1024"),
        ("train_cfg.max_iters=1e400", "train_cfg.max_iters: found inf, expected a number; it must be finite"),
        ("train_dataloader.num_workers=-1", "train_dataloader.num_workers: found -1, expected an integer of at least"),
        ("optim_wrapper.optimizer.lr=-1", "optim_wrapper.optimizer.lr: found -1, expected a number of at least 0"),
        ("optim_wrapper.optimizer.lr=.nan", "optim_wrapper.optimizer.lr: found nan, expected a number; it must be"),
        ("optim_wrapper.optimizer.betas=[2, 3]", "optim_wrapper.optimizer.betas.0: found 2, expected a number of at"),
        (
            "optim_wrapper.optimizer.weight_decay=-1",
            "optim_wrapper.optimizer.weight_decay: found -1, expected a number",
        ),
        ("optim_wrapper.optimizer={type: Muon, betas: [0.9, 1]}", "optim_wrapper.optimizer.betas.1: found 1, expected"),
        ("optim_wrapper.optimizer={type: SGD, momentum: 1}", "optim_wrapper.optimizer.momentum: found 1, expected"),
        ("param_scheduler=[{type: WarmupLR, warmup_iters: -5}]", "param_scheduler.0.warmup_iters: found -5, expected"),
        ("param_scheduler=[{type: WarmupLR, warmup_iters: 5, minimum: -1}]", "param_scheduler.0.minimum: found -1"),
        ("param_scheduler=[{type: MultiStepLR, milestones: [3, 1]}]", "param_scheduler.0.milestones: found [3, 1]"),
        ("param_scheduler=[{type: MultiStepLR, milestones: []}]", "param_scheduler.0.milestones: found [], expected"),
        ("param_scheduler=[{type: LinearLR, start_factor: 0}]", "param_scheduler.0.start_factor: found 0, expected"),
        ("param_scheduler=[{type: CosineAnnealingLR, T_max: 0}]", "param_scheduler.0.T_max: found 0, expected"),
        (
            "train_dataloader.dataset={type: ImageFolder, data_root: x, image_size: 8, crop_area: [1.0, 0.2]}",
            "train_dataloader.dataset.crop_area: found [1.0, 0.2], expected a list that ascends or null",
        ),
    ],
)
def test_values_that_mean_nothing(override, message, tiny_file):
    assert refused(tiny_file, override).startswith(message)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "TorchAdafactor"},
        {"type": "Adagrad", "lr_decay": 0.1},
        {"type": "RMSprop", "alpha": 0.9, "momentum": 0.9},
        {"type": "Rprop", "etas": [0.5, 1.2]},
        {"type": "AdamW", "eps": 1e-9, "fused": True, "amsgrad": True},
    ],
)
def test_what_torch_takes_is_taken(optimizer, tiny_file):
    ComponentGraph.load(tiny_file, {"optim_wrapper.optimizer": optimizer})


# Text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my photos #1", "my photos #1"),
        ("2024", "2024"),
        ("true", "true"),
        ("1e3", "1e3"),
        ("null", "null"),
        ("~/x", "~/x"),
        ("a: b", "a: b"),
        ("[x", "[x"),
        ("{x}", "{x}"),
        ("'2024'", "2024"),
        ('"a #1"', "a #1"),
        ("it's", "it's"),
        ("'a' and 'b'", "'a' and 'b'"),
        ("*x", "*x"),
        ("!!str x", "!!str x"),
    ],
)
def test_an_override_for_text_is_taken_as_it_stands(text, value, tmp_path, tiny_recipe):
    tiny_recipe["train_dataloader"]["dataset"] = {"type": "ImageFolder", "data_root": "x", "image_size": 8}
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(tiny_recipe))
    recipe = load_recipe(path, [f"train_dataloader.dataset.data_root={text}", "train_dataloader.batch_size=4 # four"])
    assert recipe["train_dataloader"]["dataset"]["data_root"] == value
    assert recipe["train_dataloader"]["batch_size"] == 4
    assert ComponentGraph.load(path, [f"train_dataloader.dataset.data_root={text}"]).plain["train_dataloader"]


def test_text_that_may_be_null(tiny_file):
    codec = "model.codec={type: SDVAE}"
    assert load_recipe(tiny_file, [codec, "model.codec.weights=null"])["model"]["codec"]["weights"] is None
    assert load_recipe(tiny_file, [codec, "model.codec.weights="])["model"]["codec"]["weights"] is None
    assert load_recipe(tiny_file, [codec, "model.codec.weights='null'"])["model"]["codec"]["weights"] == "null"
    assert load_recipe(tiny_file, [codec, "model.codec.weights=1e3"])["model"]["codec"]["weights"] == "1e3"


def test_folders_of_prerequisites_are_text(tiny_file, tmp_path):
    path = tmp_path / "main.yaml"
    path.write_text("prerequisites: {t: tiny.yaml}")
    other = tmp_path / "tiny #2.yaml"
    other.write_text(tiny_file.read_text())
    entry = load_recipe(path, ["prerequisites.t.run=2024", f"prerequisites.t.recipe={other}"])["prerequisites"]["t"]
    assert (entry["run"], entry["name"]) == ("2024", "tiny #2")
    inner = "prerequisites.t.recipe.init_from=true"
    assert load_recipe(path, [inner])["prerequisites"]["t"]["recipe"]["init_from"] == "true"


def test_a_number_in_the_place_of_text_says_how_to_quote(tiny_recipe, tmp_path):
    tiny_recipe["train_dataloader"]["dataset"] = {"type": "ImageFolder", "data_root": 2024, "image_size": 8}
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(tiny_recipe))
    message = refused(path)
    assert message.startswith("train_dataloader.dataset.data_root: found 2024, expected text")
    assert message.endswith("; what looks like a number or a truth value is text in quotes")


def test_annotations_by_place(tiny_recipe):
    def found(*parts):
        return annotation_at(tiny_recipe, RecipeSections, list(parts))

    assert found("train_cfg", "max_iters") == Positive
    assert found("model", "flow", "width") == Positive and found("model", "flow", "clip") is not None
    assert found("ema", "main", "decay") == Share | None
    assert found("ema", "new", "decay") == Share | None
    assert dataclasses.is_dataclass(found("ema", "main"))
    unknown = str(found("no", "such")), str(found("model", "flow", "no")), str(found("model", "9", "x"))
    assert set(unknown) == {"typing.Any"}
