"""Run folders: what a finished run opens as, what it is refused for, and what is written to one."""

import json
import shutil

import pytest
import torch

from genflow.config.graph import ComponentGraph
from genflow.errors import UserError
from genflow.generators.flow import FlowGenerator
from genflow.methods import MaximumLikelihood
from genflow.runs.converted import write_run
from genflow.runs.evaluate import evaluate_run
from genflow.runs.folder import RunFolder, open_run
from genflow.weights import read_weights, write_weights


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "copied")


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_opens_with_its_recipe(finished_run):
    run = open_run(finished_run)
    assert run.path == finished_run and str(run) == str(finished_run) and run.is_complete
    assert run.graph.source == str(finished_run / "recipe.yaml")
    assert run.graph.section("train_cfg").max_iters == 3 and run.averages == ["none", "slow"]
    changed = open_run(str(finished_run), ["evaluation.per_class=1", "train_dataloader.dataset.split=test"])
    assert changed.graph.section("evaluation").num_samples == 10
    assert len(changed.graph.section("train_dataloader").dataset) == 899


def test_a_run_whose_recipe_names_a_module_that_has_moved_opens(copied):
    file = copied / "recipe.yaml"
    file.write_text(file.read_text() + "custom_imports: [genflow.analysis.drift_toy]\n")
    assert open_run(copied).generator().sample([1, 2], seed=0).isfinite().all()


def test_weights_of_either_average(finished_run):
    run = open_run(finished_run)
    assert same(run.weights(), read_weights(finished_run / "generator.safetensors"))
    slow = run.weights("slow")
    assert same(slow, read_weights(finished_run / "generator-slow.safetensors")) and not same(slow, run.weights())


def test_the_method_is_frozen_and_has_the_weights(finished_run):
    run = open_run(finished_run)
    method = run.method()
    assert type(method) is MaximumLikelihood and same(method.flow.state_dict(), run.weights())
    assert not any(module.training for module in method.modules())
    assert not any(parameter.requires_grad for parameter in method.parameters())
    assert same(run.method("slow").flow.state_dict(), run.weights("slow"))


def test_the_generator_samples(finished_run):
    run, labels = open_run(finished_run), torch.arange(10)
    generator = run.generator()
    assert type(generator) is FlowGenerator and same(generator.network.state_dict(), run.weights())
    assert not any(module.training for module in generator.network.modules())
    images = generator.sample(labels, seed=0)
    assert images.shape == (10, 1, 8, 8) and not images.requires_grad
    assert torch.equal(run.generator().sample(labels, seed=0), images)
    assert not torch.equal(run.generator(average="slow").sample(labels, seed=0), images)
    assert run.generator("meta").device == torch.device("meta")


def test_classes_by_their_names(copied):
    run = open_run(copied)
    assert run.labels("7", "3") == [7, 3]
    run.write_metrics({"class_names": ["cats", "dogs"]})
    assert run.labels("dogs", "cats", "number=0") == [1, 0, 0]
    with pytest.raises(
        UserError, match=r"^labels: found cat, expected 0 to 1 or a class's name; nearest match: 'cats'$"
    ):
        run.labels("cat")
    run.write_metrics({"class_names": []})
    with pytest.raises(UserError, match=r"its classes have no names; give their numbers to sample$"):
        run.labels("cats")


def test_metrics_are_read_and_merged(copied):
    run = open_run(copied)
    metrics = run.metrics
    assert metrics == json.loads((copied / "metrics.json").read_text()) and metrics["updates"] == 3
    run.write_metrics({"note": [1], "updates": 4})
    assert run.metrics == {**metrics, "note": [1], "updates": 4}
    run.metrics_file.write_text("{")
    with pytest.raises(UserError) as caught:
        run.write_metrics({})
    assert str(caught.value).startswith(f"{run.metrics_file}: not valid JSON: ")
    run.metrics_file.unlink()
    assert run.metrics == {}


@pytest.mark.parametrize("use", ["weights", "method", "generator"])
def test_an_unknown_average_shows_those_there_are(finished_run, use):
    run = open_run(finished_run)
    with pytest.raises(UserError) as caught:
        getattr(run, use)(average="slwo")
    assert str(caught.value) == f"{finished_run}: no average 'slwo' (there is: main, none, slow); nearest match: 'slow'"


def test_a_run_of_before_has_the_exported_average_at_least(copied):
    for name in ("slow", "none"):
        (copied / f"generator-{name}.safetensors").unlink()
    with pytest.raises(UserError, match=r"no average 'slow' \(there is: main\)$"):
        open_run(copied).weights("slow")


def test_folders_that_hold_no_finished_run(copied):
    with pytest.raises(UserError) as caught:
        open_run(copied.with_name("copeid"))
    assert str(caught.value) == f"{copied.with_name('copeid')}: no such run folder; nearest match: 'copied'"
    (copied / "generator.safetensors").unlink()
    hint = "training has not finished: tools/train.py with --resume"
    with pytest.raises(UserError) as caught:
        open_run(copied)
    assert str(caught.value) == f"{copied}: not a finished run: generator.safetensors missing; {hint}"
    assert not RunFolder(copied).is_complete
    (copied / "recipe.yaml").unlink()
    with pytest.raises(UserError) as caught:
        open_run(copied)
    assert str(caught.value) == f"{copied}: not a finished run: recipe.yaml and generator.safetensors missing"


def test_weights_that_do_not_fit_the_recipe(copied):
    run = open_run(copied)
    with pytest.raises(UserError) as caught:
        open_run(copied, ["model.flow.blocks=3"]).method()
    assert str(caught.value).startswith(f"{run.weights_file()}: does not fit {run.recipe_file}: ")
    write_weights(run.weights_file("slow"), {"other": torch.ones(2)})
    with pytest.raises(UserError) as caught:
        run.generator(average="slow")
    assert str(caught.value).startswith(f"{run.weights_file('slow')}: does not fit {run.recipe_file}: ")


def test_an_evaluation_is_recorded_under_what_it_was_asked_for(copied):
    run = open_run(copied)
    before = run.metrics["evaluation"]
    report = evaluate_run(run, seed=1, guidance=0.5, average="slow")
    key = "evaluation, seed 1, guidance 0.5, average slow"
    assert run.metrics[key] == report and run.metrics["evaluation"] == before
    assert (report["seed"], report["guidance"], report["average"], report["samples"]) == (1, 0.5, "slow", 20)
    with pytest.raises(UserError, match=r"steps: found 3, expected none: a FlowGenerator has no steps"):
        evaluate_run(run, steps=3)
    bare = open_run(copied, ["evaluation=null"])
    with pytest.raises(UserError) as caught:
        evaluate_run(bare)
    assert str(caught.value).startswith(f"{run.recipe_file}: evaluation: missing; name an evaluator")


def test_a_run_of_somebody_elses_weights_opens(finished_run, tmp_path, tiny_file):
    """Whole, or not at all."""
    graph, weights = ComponentGraph.load(tiny_file, {"train_cfg": None}), open_run(finished_run).weights()
    source = finished_run / "generator.safetensors"
    write_run(tmp_path / "deep" / "run", graph, weights, source)
    run = open_run(tmp_path / "deep" / "run")
    assert same(run.weights(), weights) and run.graph.plain == graph.plain
    assert run.metrics["converted_from"]["file"] == "generator.safetensors" and run.metrics["updates"] is None
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]
    with pytest.raises(FileNotFoundError):
        write_run(tmp_path / "other", graph, weights, tmp_path / "no such file")
    assert not (tmp_path / "other").exists()
