"""Drifting's toy at toy size: the starts, what runs keep on their way, figures, strip and film, other fields."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from genflow.data.toy2d import MODE_CENTRE
from genflow.errors import UserError
from genflow.reproduction import drift_toy, drift_toy_fields
from genflow.reproduction.ablation import train_jobs
from genflow.runs.folder import open_run

RECIPES = Path(__file__).parents[2] / "recipes"
UPDATES = 10


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    small = (f"train_cfg.max_iters={UPDATES}", "model.samples_per_label=32", "model.positives=32")
    jobs = [
        type(job)(job.recipe, job.work_dir, 0, (*job.overrides, *small), 1)
        for job in (*drift_toy.toy_jobs(RECIPES, folder), *drift_toy_fields.field_jobs(RECIPES, folder))
    ]
    train_jobs(jobs, 1, lambda done, total: None)
    return folder


def test_runs_keep_samples_from_the_start_to_the_artifact(out):
    for start in drift_toy.STARTS:
        points = drift_toy.read_points(out / start)
        assert list(points) == [0, 2, 4, 6, 8, 10]
        assert all(value.shape == (2000, 2) for value in points.values())
        generator = open_run(out / start).generator()
        assert torch.equal(points[UPDATES], drift_toy.draw_samples(generator, 2000))


def test_a_run_that_kept_nothing_is_named(out, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(out / "far", run, ignore=shutil.ignore_patterns("points"))
    with pytest.raises(UserError, match="run: has no points/"):
        drift_toy.read_points(run)


def test_starts_lie_where_their_names_say(out):
    first = {start: drift_toy.read_points(out / start)[0] for start in drift_toy.STARTS}
    assert first["middle"].mean(dim=0).abs().max() < 0.05
    assert first["far"].mean(dim=0)[1] > 0.8 and abs(first["far"].mean(dim=0)[0]) < 0.05
    assert abs(first["collapsed"].mean(dim=0)[0] + MODE_CENTRE) < 0.05
    figures = drift_toy.figures(first["collapsed"])
    assert figures["left"] > 0.95 and figures["right"] == 0.0


def test_figures_of_the_target_itself():
    figures = drift_toy.figures(drift_toy.target_points(4000)[2000:])
    assert 0.45 < figures["left"] < 0.53 and 0.45 < figures["right"] < 0.53
    assert figures["energy_distance"] < 0.005


def test_strip_and_film(out, tmp_path):
    drift_toy.draw_strip(out / "middle", "start", tmp_path / "strip.png")
    drift_toy.draw_film(out / "middle", "start", tmp_path / "film.gif")
    strip, film = Image.open(tmp_path / "strip.png"), Image.open(tmp_path / "film.gif")
    assert strip.width > 3 * strip.height and len(strip.convert("RGB").getcolors(2**20)) > 50
    assert film.n_frames == 6
    film.seek(5)
    assert len(film.convert("RGB").getcolors(2**20)) > 10


def test_the_table_has_a_line_for_everything_shown(out):
    results = drift_toy.toy_figures(out)
    lines = drift_toy.format_toy(results).splitlines()
    assert len(lines) == 2 + 3 * 3 + 1  # updates 0, 8 and 10 of three starts, and the target
    assert all(0 <= row["left"] + row["right"] <= 1 for rows in results.values() for row in rows.values())


def test_every_field_moves_the_same_start_its_own_way(out, tmp_path):
    results = drift_toy_fields.field_figures(out)
    lines = drift_toy_fields.format_fields(results).splitlines()
    assert len(lines) == 2 + 5 * 2 and lines[0].count("|") == 7  # the last of updates 0, 8 and 10, and 8
    ends = [starts["collapsed"][str(UPDATES)]["energy_distance"] for starts in results.values()]
    assert len(set(ends)) == 5 and len({starts["collapsed"]["0"]["left"] for starts in results.values()}) == 1
    drift_toy_fields.draw_fields(out, tmp_path / "fields.png")
    strip = Image.open(tmp_path / "fields.png")
    assert strip.width > 700 and len(strip.convert("RGB").getcolors(2**20)) > 50
