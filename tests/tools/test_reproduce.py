"""tools/reproduce.py as a user runs it, on the toy of Drifting."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from genflow.reproduction import drift_toy, drift_toy_fields

TOOL = Path(__file__).parents[2] / "tools" / "reproduce.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


@pytest.fixture
def quick(monkeypatch):
    """One of the toy's starts and another field, with two updates."""
    monkeypatch.setattr(drift_toy, "STARTS", {"far": drift_toy.STARTS["far"]})
    monkeypatch.setattr(
        drift_toy_fields, "FIELDS", {name: drift_toy_fields.FIELDS[name] for name in ("laplace", "sinkhorn")}
    )
    job = drift_toy.toy_job
    small = ("train_cfg.max_iters=2", "model.samples_per_label=8", "model.positives=8")

    def short(*arguments):
        made = job(*arguments)
        return replace(made, overrides=(*made.overrides, *small))

    monkeypatch.setattr(drift_toy, "toy_job", short)


@pytest.mark.slow
def test_toy_of_drifting_is_trained_and_drawn(quick, monkeypatch, tmp_path, capsys):
    run(monkeypatch, "drift-toy", "--out", tmp_path, "--processes", 1)
    table = capsys.readouterr().out
    results = json.loads((tmp_path / "drift_toy.json").read_text())
    assert set(results) == {*drift_toy.STARTS, "target"}
    for start in drift_toy.STARTS:
        assert f"| {start} | 2 | {results[start]['2']['left']:.3f} |" in table
        for suffix in ("png", "gif"):
            assert (tmp_path / f"drift_toy_{start}.{suffix}").stat().st_size > 5000
    fields = json.loads((tmp_path / "drift_toy_fields.json").read_text())
    assert f"| sinkhorn | far | {fields['sinkhorn']['far']['2']['left']:.3f} |" in table
    assert (tmp_path / "drift_toy_fields.png").stat().st_size > 5000
    run(monkeypatch, "drift-toy", "--out", tmp_path)  # finished runs are drawn again, over our own pictures
    capsys.readouterr()
    (tmp_path / "drift_toy.json").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "drift-toy", "--out", tmp_path)
    assert stopped.value.code == 2 and (tmp_path / "drift_toy.json").read_text() == "mine"
    message = "is there already and was written or changed by others; --overwrite replaces it"
    assert capsys.readouterr().err == f"error: {tmp_path / 'drift_toy.json'}: {message}\n"
    run(monkeypatch, "drift-toy", "--out", tmp_path, "--overwrite")
    assert json.loads((tmp_path / "drift_toy.json").read_text()) == results


def test_a_run_of_another_recipe_in_the_way_is_one_line(finished_run, monkeypatch, tmp_path, capsys):
    (tmp_path / "far").symlink_to(finished_run)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "drift-toy", "--out", tmp_path)
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and error.isprintable()
    assert error.startswith(f"error: {tmp_path / 'far'}: was trained with another recipe than ")


def test_mistake_and_help(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "drift_toy")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: argument what: invalid choice: 'drift_toy' (choose from ")
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert "drift-toy" in text and "example:" in text
