"""tools/evaluate.py from end to end: a classifier's features, sweeps, several processes, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import started
from PIL import Image

from genflow.data import PackedImages
from genflow.errors import UserError
from genflow.evaluation.conventions import CONVENTIONS
from genflow.evaluation.generation import GenerationEvaluator
from genflow.evaluation.statistics import make_statistics, read_statistics
from genflow.runs import sweep
from genflow.runs.evaluate import Setting, evaluate_run, measure
from genflow.runs.folder import open_run
from genflow.runs.sweep import settings_of

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "evaluate.py"
CLASSIFIER = "prerequisites.classifier.recipe"
RECIPE = f"""
_base_: {ROOT}/recipes/pmf_digits.yaml
prerequisites: {{classifier: {ROOT}/recipes/classifier_digits.yaml}}
model: {{backbone: {{width: 16, depth: 2, heads: 2, head_depth: 1, auxiliary_depth: 1}}}}
train_cfg: {{max_iters: 2}}
default_hooks: {{samples: {{per_class: 1}}}}
evaluation:
  _delete_: true
  type: GenerationEvaluator
  extractors: {{classifier: $classifier}}
  reference: {{type: Digits, split: train}}
  validation: {{type: Digits, split: test}}
  num_samples: 60
  batch_size: 7
  kept_features: 100
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that two processes trained, and measured at its end."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "tiny.yaml").write_text(RECIPE)
    options = ["--work-dir", folder / "run", "--cfg-options", f"{CLASSIFIER}.train_cfg.max_iters=3"]
    command = [sys.executable, ROOT / "tools" / "train.py", folder / "tiny.yaml", *options]
    started.run(command, processes=2, check=True, capture_output=True)
    return folder / "run"


def evaluate(run, *arguments, processes=1):
    command = [sys.executable, TOOL, run, *arguments]
    return started.run(command, processes, check=True, capture_output=True, text=True).stdout


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_training_ends_with_the_figures_and_what_they_depend_on(run):
    report = metrics(run)["evaluation"]
    assert set(report["model"]) >= {
        "fd",
        "fdr",
        "kernel_distance",
        "precision",
        "recall",
        "inception_score",
        "accuracy",
    }
    assert report["real"]["fdr"] == 1 and report["samples"] == 60
    assert report["convention"] == "torch_fidelity" and len(report["extractors"]["classifier"]) == 16
    assert report["beside"].startswith("none: no extractor is the Inception network")
    evaluate(run)
    assert metrics(run)["evaluation"]["model"] == pytest.approx(report["model"], rel=1e-5)


def test_processes_get_what_one_gets(run):
    said = evaluate(run, "--seed", "1")
    assert "published figures that these may stand beside: none" in said
    alone = metrics(run).pop("evaluation, seed 1, guidance 1, average None")
    evaluate(run, "--seed", "1", processes=2)
    shared = metrics(run)["evaluation, seed 1, guidance 1, average None"]
    assert shared["model"] == pytest.approx(alone["model"], rel=1e-5)
    assert not list((run / ".evaluation").glob("*.pt"))


def test_a_sweep_is_a_table_a_picture_and_the_best(run):
    said = evaluate(run, "--sweep", "guidance=1:2:0.5", "average=all", "--bootstrap", "5")
    assert "best fd: " in said and str(run / "sweep.png") in said
    with Image.open(run / "sweep.png") as picture:
        assert picture.width > 800
    reports = [entry for entry in metrics(run).values() if isinstance(entry, dict) and "error" in entry]
    assert len(reports) == 3 * 4 and {report["guidance"] for report in reports} == {1, 1.5, 2}
    assert all(report["error"]["fd"] > 0 for report in reports)


@pytest.mark.slow
def test_a_killed_call_goes_on(run):
    options = ("--seed", "3", "--cfg-options", "evaluation.batch_size=1", "evaluation.num_samples=120")
    process = started.Started([sys.executable, TOOL, run, *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list((run / ".evaluation").glob("*.pt")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (partial,) = (run / ".evaluation").glob("*.pt")
    own = "evaluation, seed 3, guidance 1, average None, evaluation.batch_size=1, evaluation.num_samples=120"
    evaluate(run, *options)
    found = metrics(run)[own]
    assert not partial.exists() and found["samples"] == 120
    again = evaluate_run(open_run(run, options[-2:]), seed=3)
    assert again["model"] == pytest.approx(found["model"], rel=1e-5)


def test_changed_settings_have_an_entry_of_their_own(run):
    before = metrics(run)["evaluation"]
    evaluate(run, "--num-samples", "30")
    after = metrics(run)
    assert after["evaluation"] == before and after["evaluation, evaluation.num_samples=30"]["samples"] == 30


def test_a_killed_sweep_measures_what_is_left(run, monkeypatch):
    opened, settings = open_run(run), [Setting(guidance=scale) for scale in (1.25, 1.75, 2.25)]
    measured = []

    def stopping(run, evaluator, setting, *rest):
        measured.append(setting.guidance)
        if measured == [1.25, 1.75]:
            raise KeyboardInterrupt
        return measure(run, evaluator, setting, *rest)

    monkeypatch.setattr(sweep, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep_run(opened, settings)
    reports = sweep.sweep_run(opened, settings)
    assert measured == [1.25, 1.75, 1.75, 2.25] and [report["guidance"] for report in reports] == [1.25, 1.75, 2.25]
    assert not list((run / ".evaluation").iterdir())
    (file,) = [sweep.work_file(opened, settings[0], "done_0.json")]
    file.write_text("damaged")
    assert sweep.sweep_run(opened, settings[:1])[0]["model"] == reports[0]["model"] and measured[-1] == 1.25


def test_error_bars_that_there_are_not(run, monkeypatch):
    monkeypatch.setattr(GenerationEvaluator, "has_error_bars", False)
    with pytest.raises(UserError, match="--bootstrap: a GenerationEvaluator has no error bars"):
        sweep.sweep_run(open_run(run), [Setting()], bootstrap=2)


def test_statistics_in_the_features_of_a_run(run, tmp_path):
    """Two processes find what one does."""
    for index in range(9):
        Image.effect_noise((8, 8), 60 + 10 * index).save(tmp_path / f"{index}.png")
    packed, out, extractor = tmp_path / "packed", tmp_path / "statistics.npz", run.parent / "classifier_digits"
    tool = ROOT / "tools" / "prepare_data.py"
    packing = ("images", tmp_path, packed, "--size", "8", "--channels", "1", "--labels", "none")
    statistics = ("statistics", packed, out, "--extractor", extractor, "--batch-size", "2")
    for processes, arguments in ((1, packing), (2, statistics)):
        started.run([sys.executable, tool, *arguments], processes, check=True, capture_output=True)
    encoder = open_run(extractor).method().artifact_module
    alone = make_statistics(
        PackedImages.opened(str(packed)), encoder, CONVENTIONS["torch_fidelity"], tmp_path / "alone.npz"
    )
    shared = read_statistics(out)
    assert np.allclose(shared.gaussian.mean, alone.gaussian.mean, atol=1e-6)
    assert np.allclose(shared.gaussian.covariance, alone.gaussian.covariance, atol=1e-6)
    assert shared.facts == alone.facts


AVERAGES = ["main", "slow", "none"]


def test_settings_are_every_one_with_every_other():
    found = settings_of(["guidance=1:2:0.5", "average=all", "interval=0:1,0.1:0.7"], Setting(seed=4), AVERAGES)
    assert len(found) == 3 * 3 * 2 and {setting.seed for setting in found} == {4}
    assert found[0] == Setting(4, 1.0, "main", None, (0.0, 1.0))
    assert [setting.guidance for setting in settings_of(["guidance=1,2.5"], Setting(), AVERAGES)] == [1, 2.5]
    assert [setting.guidance for setting in settings_of(["guidance=0:0.3:0.1"], Setting(), AVERAGES)] == [
        0,
        0.1,
        0.2,
        0.3,
    ]
    assert settings_of([], Setting(seed=2), AVERAGES) == [Setting(seed=2)]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["guidanc=1"], "found 'guidanc=1', expected NAME=VALUES of guidance, average, interval, steps, seed; nearest"),
        (["guidance"], "found 'guidance', expected NAME=VALUES"),
        (["guidance=1", "guidance=2"], "found guidance twice"),
        (["guidance=1:2"], "guidance: found '1:2', expected numbers as 1:4:0.5"),
        (["guidance=1:4:0"], "guidance: found '1:4:0'"),
        (["guidance=4:1:1"], "guidance: found '4:1:1'"),
        (["guidance=nan"], "guidance: found 'nan'"),
        (["guidance=1:1e9:1"], "guidance: found '1:1e9:1'"),
        (["guidance="], "guidance: found ''"),
        (
            ["average=half_life_12"],
            "average: found 'half_life_12', there is half_life_6k, half_life_12k, half_life_3k, none; ",
        ),
        (["interval=0.7:0.1"], "interval: found '0.7:0.1'"),
        (["interval=0.5"], "interval: found '0.5'"),
        (["steps=1.5"], "steps: found '1.5'"),
        (["steps=0"], "steps: found '0'"),
        (["seed=-1"], "seed: found '-1'"),
        (["guidance=1:100:1", "seed=0:99:1"], "found 10000 settings, expected at most 1000"),
    ],
)
def test_sweeps_that_mean_nothing_are_one_line(refused, run, words, problem):
    assert f"--sweep: {problem}" in refused("evaluate", run, "--sweep", *words)
