"""The plans of pMF's ablation and toy, and the toy figure at toy size."""

from pathlib import Path

import pytest
from PIL import Image

from genflow.config.graph import ComponentGraph
from genflow.config.recipe import load_recipe
from genflow.reproduction import pmf as reproduce_pmf
from genflow.reproduction.ablation import jobs_of, train_jobs

RECIPES = Path(__file__).parents[2] / "recipes"


def test_every_run_of_the_ablation_is_a_valid_recipe_and_all_differ(tmp_path):
    jobs = jobs_of(reproduce_pmf.PAPER_ROWS, RECIPES, tmp_path, [0], threads=1)
    recipes = [load_recipe(job.recipe, job.overrides) for job in jobs]
    for job, recipe in zip(jobs, recipes, strict=True):
        ComponentGraph.from_recipe(recipe, str(job.recipe))
        assert not job.needs
        assert recipe["train_cfg"] == recipes[0]["train_cfg"]
    assert len(recipes) == 10
    assert all(one != other for index, one in enumerate(recipes) for other in recipes[:index])


@pytest.mark.parametrize("dimensions", reproduce_pmf.DIMENSIONS)
def test_the_toys_differ_in_the_prediction_alone(dimensions, tmp_path):
    pair = [job for job in reproduce_pmf.toy_jobs(RECIPES, tmp_path) if job.work_dir.name.endswith(f"_{dimensions}")]
    x, u = (load_recipe(job.recipe, job.overrides) for job in pair)
    ComponentGraph.from_recipe(x)
    assert x["model"]["field"].pop("prediction") == "x" and u["model"]["field"].pop("prediction") == "u"
    assert x == u
    assert x["model"]["backbone"]["channels"] == dimensions


@pytest.mark.slow
def test_the_toy_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_pmf, "DIMENSIONS", (2, 8))
    jobs = [
        type(job)(job.recipe, job.work_dir, 0, (*job.overrides, "train_cfg.max_iters=2"), 1)
        for job in reproduce_pmf.toy_jobs(RECIPES, tmp_path)
    ]
    train_jobs(jobs, 1, lambda done, total: None)
    distances = reproduce_pmf.toy_distances(tmp_path, count=200)
    assert set(distances) == {"x", "u"} and set(distances["x"]) == {2, 8}
    assert all(0 < value < 10 for row in distances.values() for value in row.values())
    reproduce_pmf.draw_toy(tmp_path, tmp_path / "toy.png", distances, count=200)
    picture = Image.open(tmp_path / "toy.png").convert("RGB")
    colours = {colour for _, colour in picture.getcolors(2**20)}
    assert picture.width > 800 and len(colours) > 50
