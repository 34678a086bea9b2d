"""The toy recipes from training to samples, and the picture of their trajectories."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.engine.checkpoint import find_checkpoints
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.reproduction import biflow_toy
from genflow.reproduction.biflow_toy import draw_toy_figure, place_colours
from genflow.runs.folder import open_run
from genflow.weights import read_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"
TEACHER = "prerequisites.teacher.recipe"
NAME = "train_dataloader.dataset.name"
BLOCKS = 3
TINY = {
    "train_cfg.max_iters": 4,
    "train_dataloader.batch_size": 32,
    "default_hooks.samples.per_class": 50,
    "model.inverse.backbone.width": 16,
    "model.inverse.backbone.groups": BLOCKS,
    f"{TEACHER}.train_cfg.max_iters": 3,
    f"{TEACHER}.train_dataloader.batch_size": 32,
    f"{TEACHER}.default_hooks.samples.per_class": 50,
    f"{TEACHER}.model.flow.blocks": BLOCKS,
    f"{TEACHER}.model.flow.width": 8,
    NAME: "two_moons",
    f"{TEACHER}.{NAME}": "two_moons",
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A finished run of ``biflow_toy.yaml`` at toy size, its teacher beside it."""
    work_dir = tmp_path_factory.mktemp("toy") / "biflow_toy"
    return train(RECIPES / "biflow_toy.yaml", TINY, options=TrainOptions(work_dir=work_dir))


@pytest.fixture
def drawn(run_dir, tmp_path, monkeypatch):
    """The picture's path, and the states that were drawn."""
    rows = []
    draw = biflow_toy._draw
    monkeypatch.setattr(biflow_toy, "_draw", lambda states, path: (rows.extend(states), draw(states, path)))
    draw_toy_figure(run_dir, tmp_path / "sub" / "toy.png", count=300)
    return tmp_path / "sub" / "toy.png", rows


def test_recipes_train_sample_and_draw_scatter_pictures(run_dir):
    for folder, step in ((run_dir, 4), (run_dir.parent / "flow_toy", 3)):
        picture = Image.open(folder / "samples" / f"step_{step:08d}.png")
        assert picture.size == (480, 480)
        samples = open_run(folder).generator().sample(torch.zeros(5, dtype=torch.int64), seed=0)
        assert samples.shape == (5, 2, 1, 1) and samples.isfinite().all()


def test_states_of_both_rows(run_dir, drawn):
    _, (forward, reverse) = drawn
    assert len(forward) == len(reverse) == BLOCKS + 2
    assert all(state.shape == (300, 2, 1, 1) for state in (*forward, *reverse))
    assert (forward[1] - forward[0]).std() == pytest.approx(0.08, rel=0.15)
    teacher = open_run(run_dir.parent / "flow_toy").generator().network
    for state, expected in zip(forward[1:], teacher(forward[1]).states, strict=True):
        assert torch.equal(state, expected)
    # The samples are those of the exported, averaged weights, on the same noise.
    samples = open_run(run_dir).generator().sample(torch.zeros(300, dtype=torch.int64), seed=0, decode=False)
    assert (samples - reverse[0]).abs().max() < 1e-6
    assert reverse[-1].std() == pytest.approx(1.0, rel=0.1)


def test_hidden_states_are_seen_through_averaged_projections_in_the_scale_of_the_states(run_dir, drawn):
    z, projected = drawn[1][1][-1], drawn[1][1][1:-1]
    state = read_checkpoint(find_checkpoints(run_dir)[-1])
    average, hidden = state["averages"]["main"], open_run(run_dir).generator().network.embed(z)
    network = open_run(run_dir).generator().network
    for index in reversed(range(BLOCKS)):
        hidden = network.group(index, hidden, None)
        weight, bias = (average[f"inverse.projections.{index}.{part}"] for part in ("weight", "bias"))
        scale = state["model"]["inverse.trajectory_norm.mean_square"][index].sqrt()
        assert scale != 1
        expected = scale * (hidden[:, 0] @ weight.T + bias)
        assert (projected[index].flatten(1) - expected).abs().max() < 1e-5


def test_picture_has_a_panel_for_every_state(drawn):
    picture = np.array(Image.open(drawn[0]).convert("RGB"))
    assert picture.shape[1] == pytest.approx(165 * (BLOCKS + 2), abs=2)
    # Frames are the long black lines: two for every panel, along either axis.
    black = (picture < 60).all(axis=2)
    for axis, panels in ((0, BLOCKS + 2), (1, 2)):
        along = black.sum(axis=axis)
        lines = along > 0.5 * along.max()
        assert (np.diff(lines.astype(int), prepend=0) == 1).sum() == 2 * panels


def test_colours_tell_places_apart():
    places = torch.tensor([[0.5, 0.0], [0.25, 0.0], [0.0, 0.5], [-0.5, 0.0]])
    colours = place_colours(places)
    assert colours.shape == (4, 3) and colours.min() >= 0 and colours.max() <= 1
    assert all(np.abs(one - other).max() > 0.05 for i, one in enumerate(colours) for other in colours[:i])
    assert np.allclose(place_colours(places.flip(0)), colours[::-1])


def test_other_runs_are_one_line(run_dir, finished_run, tmp_path):
    teacher = run_dir.parent / "flow_toy"
    for folder in (teacher, finished_run):
        with pytest.raises(UserError, match="is no run of BiFlow on points in the plane"):
            draw_toy_figure(folder, tmp_path / "toy.png")
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in ("recipe.yaml", "generator.safetensors", "prerequisites"):
        (bare / part).symlink_to(run_dir / part)
    with pytest.raises(UserError, match="has no checkpoint"):
        draw_toy_figure(bare, tmp_path / "toy.png")
    assert not (tmp_path / "toy.png").exists()
