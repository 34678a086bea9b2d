"""Curves of runs: what is read of scalars.jsonl, what is drawn of several runs, and the picture."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from genflow.errors import UserError
from genflow.runs.curves import chosen_grids, draw_curves, panels_of, read_curves, smooth
from genflow.runs.folder import RunFolder


def made_run(folder, lines, grids=(), held_out=()):
    folder.mkdir()
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (folder / "scalars.jsonl").write_text(text)
    (folder / "recipe.yaml").write_text(json.dumps({"model": {"held_out": {name: {} for name in held_out}}}))
    (folder / "samples").mkdir()
    for step in grids:
        Image.new("RGB", (40, 20), "white").save(folder / "samples" / f"step_{step:08d}.png")
    return read_curves(RunFolder(folder))


def test_updates_that_were_done_again_count_once_and_later_ones_not_at_all(tmp_path):
    first = [{"step": step, "loss": 1.0} for step in range(1, 9)]
    again = [{"step": step, "loss": 2.0, "late": float(step)} for step in range(4, 7)]
    run = made_run(tmp_path / "run", [*first, "a note", "{}", *again, '{"step": 7, "lo'])
    assert run.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.values["loss"].tolist() == [1.0] * 3 + [2.0] * 3
    assert np.isnan(run.values["late"][:3]).all() and run.values["late"][3:].tolist() == [4.0, 5.0, 6.0]


def test_what_runs_share_is_drawn_and_what_any_holds_out(tmp_path):
    one = {"step": 1, "error": 1.0, "loss": 1.0, "own": 1.0, "grad_norm": 1.0, "lr": 0.1}
    other = {"step": 1, "loss": 1.0, "error": 1.0, "kept": 1.0, "grad_norm": 1.0, "lr": 0.1}
    runs = [made_run(tmp_path / "one", [one]), made_run(tmp_path / "other", [other], held_out=["kept", "absent"])]
    assert panels_of(runs) == ["loss", "error", "kept", "grad_norm"]
    assert panels_of(runs[:1]) == ["loss", "error", "own", "grad_norm"]


def test_smooth_lines_are_means_of_what_is_there():
    values = np.array([1.0, 2.0, 3.0, math.nan, 5.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 2.0, 2.5, math.nan, 5.0])
    np.testing.assert_allclose(smooth(values, 1), values)
    np.testing.assert_allclose(smooth(np.full(7, 0.1), 99), np.full(7, 0.1))


def test_first_middle_and_last_grid(tmp_path):
    for grids, chosen in (([], []), ([5], [5]), ([5, 6], [5, 6]), ([1, 2, 3, 4, 5], [1, 3, 5]), ([9, 10], [9, 10])):
        run = made_run(tmp_path / f"run{grids}", [{"step": 1, "loss": 1.0}], grids)
        assert [step for step, _ in chosen_grids(run.grids)] == chosen


def test_the_picture_has_lines_in_the_colours_of_the_runs_and_grids_beside_them(tmp_path):
    def lines(scale):
        return [{"step": step, "loss": scale / step, "grad_norm": -1.0} for step in range(1, 40)]

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    runs = [
        made_run(tmp_path / "a" / "same", lines(1.0), [10, 20]),
        made_run(tmp_path / "b" / "same", lines(9.0), [10]),  # a run of the same name
    ]
    draw_curves(runs, tmp_path / "grids.png")
    draw_curves([made_run(tmp_path / "c", lines(1.0))], tmp_path / "none.png")
    pictures = {name: Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("grids", "none")}
    for name, colours in (("grids", 2), ("none", 1)):
        seen = {colour for _, colour in pictures[name].getcolors(2**24)}
        own = [(31, 119, 180), (255, 127, 14)]  # of matplotlib's first two runs
        assert [colour in seen for colour in own] == [True, colours == 2], name
    assert pictures["grids"].width > pictures["none"].width


def test_runs_without_a_name_in_common_are_refused(tmp_path):
    runs = [made_run(tmp_path / name, [{"step": 1, name: 1.0}]) for name in ("one", "other")]
    with pytest.raises(UserError, match="log nothing under the same name"):
        draw_curves(runs, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_folders_without_updates_are_refused(tmp_path):
    made_run(tmp_path / "pmf_digits", [{"step": 1, "loss": 1.0}])
    with pytest.raises(UserError, match=r"pmf_digit/scalars\.jsonl: missing.*nearest match: 'pmf_digits'"):
        read_curves(RunFolder(tmp_path / "pmf_digit"))
    with pytest.raises(UserError, match=r"scalars\.jsonl: holds no update yet"):
        made_run(tmp_path / "begun", [])
