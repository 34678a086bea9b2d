"""An ablation of toy size: which runs it needs, that these train, resume and are measured, the table and the figure."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from genflow.config.graph import ComponentGraph
from genflow.config.recipe import load_recipe
from genflow.errors import UserError
from genflow.reproduction import biflow as reproduce_biflow
from genflow.reproduction import drifting as reproduce_drifting
from genflow.reproduction.ablation import EXACT_INVERSE, Ablation, Row, format_table, jobs_of, measure, train_jobs
from genflow.reproduction.ablation_figure import draw_ablation, sample_strip

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = (
    "train_cfg.max_iters=2",
    "evaluation.per_class=2",
    *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "groups=2")),
)
SMALL_TEACHER = (
    "evaluation.per_class=2",
    *(f"model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
)
TINY = Ablation(
    name="tiny",
    rows=(
        Row("reverse", EXACT_INVERSE, "itarflow_digits", teacher="itarflow_digits", paper=44.46),
        Row("reverse", "naive", "biflow_digits_naive", teacher="itarflow_digits", paper=43.41),
        Row("guidance", "learned", "biflow_digits", ("model.noise_std=0.1",), "itarflow_digits", guidance=0.5),
    ),
    teachers={"itarflow_digits": ("itarflow_digits", SMALL_TEACHER)},
    shared=SMALL,
    teacher_updates=2,
)


def no_progress(done, total):
    pass


@pytest.mark.parametrize(
    "plan", [reproduce_biflow.PAPER_ROWS, reproduce_biflow.OPEN_POINTS, reproduce_drifting.PAPER_ROWS]
)
def test_every_run_of_a_plan_is_a_valid_recipe_and_fits_its_teacher(plan, tmp_path):
    jobs = jobs_of(plan, RECIPES, tmp_path, [0], threads=1)
    assert len({job.work_dir for job in jobs}) == len(jobs)
    teachers = {}
    for job in jobs:
        recipe = load_recipe(job.recipe, job.overrides)
        ComponentGraph.from_recipe(recipe, str(job.recipe))
        if not job.needs:
            teachers[job.work_dir] = recipe
        else:
            entry = recipe["prerequisites"][plan.prerequisite]
            assert (Path(entry["run"]),) == job.needs
            assert entry["recipe"] == teachers[job.needs[0]]  # what it expects is what was trained
            assert recipe["model"].get("noise_std") == entry["recipe"]["model"].get("noise_std")
    shown = {tmp_path / "seed_0" / row.run for row in plan.rows}
    assert shown <= {job.work_dir for job in jobs}


def test_seeds_have_teachers_of_their_own(tmp_path):
    jobs = jobs_of(TINY, RECIPES, tmp_path, [3, 4], threads=1)
    assert [job.seed for job in jobs if not job.needs] == [3, 4]
    for job in jobs:
        assert all(need.parent == job.work_dir.parent for need in job.needs)


@pytest.mark.slow
def test_a_tiny_ablation_from_training_to_table_and_figure(tmp_path):
    jobs = jobs_of(TINY, RECIPES, tmp_path, [0], threads=1)
    seen = []
    train_jobs(jobs, 1, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    weights = tmp_path / "seed_0" / TINY.rows[1].run / "generator.safetensors"
    before = weights.stat().st_mtime_ns
    train_jobs(jobs, 1, no_progress)  # nothing is left to do
    assert weights.stat().st_mtime_ns == before

    results = measure(TINY, tmp_path, [0], no_progress)
    assert [result["nfe"] for result in results] == [33, 1, 1]  # 2 blocks of 16 tokens, and the score step
    for result in results:
        assert set(result["figures"]) == {"fd", "accuracy", "precision", "recall"}
        assert all(len(values) == 1 for values in result["figures"].values())
    assert measure(TINY, tmp_path, [0], no_progress) == results

    table = format_table(TINY, results, "../recipes").splitlines()
    assert len(table) == 5 and table[3].startswith("|  | [naive](../recipes/biflow_digits_naive.yaml) |")
    assert "44.46" in table[2] and "`model.noise_std=0.1`" in table[4] and "| 0.5 | 1 |" in table[4]

    strips = [sample_strip(tmp_path / "seed_0" / row.run, row.guidance, classes=10) for row in TINY.rows]
    assert all(strip.shape == (8, 80) and strip.dtype == torch.uint8 for strip in strips)
    draw_ablation(results, strips, tmp_path / "figure.png")
    picture = Image.open(tmp_path / "figure.png")
    assert picture.width > 800 and len(picture.convert("L").getcolors()) > 20

    changed = replace(TINY, shared=(*SMALL, "train_cfg.max_iters=3"))
    with pytest.raises(UserError, match="was trained with another recipe"):
        train_jobs(jobs_of(changed, RECIPES, tmp_path, [0], threads=1), 1, no_progress)
