"""Run folders: whose files they hold, figures of several processes, averages by name, copies that are checked."""

import json
import multiprocessing
import shutil

import pytest
import torch

from genflow.config.graph import ComponentGraph
from genflow.errors import UserError
from genflow.runs.evaluate import evaluate_run
from genflow.runs.folder import RunFolder, open_run
from genflow.runs.ownership import remove_partial_files
from genflow.weights import read_weights, write_weights


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run")


# Whose folder it is


def test_new_and_empty_folders_are_free(tmp_path):
    RunFolder(tmp_path / "new").check_own()
    RunFolder(tmp_path).check_own()
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "20260101_120000").mkdir()  # a start that was killed at once
    (tmp_path / ".recipe.yaml.abcd_123.partial").write_text("")
    RunFolder(tmp_path).check_own()


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "notes.txt", "metrics.json", "scalars.jsonl", "checkpoints/step_best.pt", "samples/a.png"]
)
def test_folders_of_others_are_refused(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("# mine\nmodel: {}\n")
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path).check_own()
    first = name.partition("/")[0]
    assert str(caught.value) == f"{tmp_path}: holds '{first}' and is no run folder; pass another --work-dir"
    with pytest.raises(UserError, match="is no folder"):
        RunFolder(file).check_own()


def test_a_signed_recipe_makes_the_folder_ours_until_somebody_edits_it(tmp_path, tiny_file):
    folder = RunFolder(tmp_path / "run")
    folder.write_recipe(ComponentGraph.load(tiny_file))
    first, *_ = folder.recipe_file.read_text().splitlines()
    assert first.startswith("# Written by GenFlow")
    assert ComponentGraph.load(folder.recipe_file).plain == ComponentGraph.load(tiny_file).plain
    folder.check_own()
    folder.recipe_file.write_text(folder.recipe_file.read_text() + "# how this copy differs: not at all\n")
    with pytest.raises(UserError, match=r"holds 'recipe\.yaml' and is no run folder"):
        folder.check_own()


def test_run_folders_of_before_signed_recipes_are_ours(run):
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().partition("\n")[2])
    RunFolder(run).check_own()
    (run / "generator.safetensors").unlink()
    RunFolder(run).check_own()
    shutil.rmtree(run / "checkpoints")
    RunFolder(run).check_own()
    (run / "scalars.jsonl").write_text("")  # killed before the first update
    RunFolder(run).check_own()
    (run / "scalars.jsonl").unlink()
    with pytest.raises(UserError, match="is no run folder"):
        RunFolder(run).check_own()


def test_only_exact_names_are_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "step_00000007.pt").mkdir(parents=True)
    ours = ["step_00000009.pt", "step_00000010.pt", "step_99999999.pt", "step_100000000.pt"]
    others = [
        "step_best.pt",
        "step_00000010_mine.pt",
        "step_10.pt",
        "step_000000010.pt",
        "step_\u0660\u0660\u0660\u0660\u0660\u0660\u0661\u0660.pt",
        "a.pt",
    ]
    for name in (*ours, *others):
        (folder / name).write_bytes(b"")
    run = RunFolder(tmp_path)
    assert [path.name for path in run.checkpoints.values()] == ours
    assert all(run.checkpoint_file(step) == path for step, path in run.checkpoints.items())


def test_only_our_half_written_files_are_removed(tmp_path):
    names = {
        True: [
            ".recipe.yaml.abcd_123.partial",
            ".generator-slow.safetensors.abcd_123.partial",
            "checkpoints/.step_00000012.pt.abcd_123.partial",
            "checkpoints/.step_00000012.process_0_of_2.abcd_123.partial",
            "samples/.step_00000012.png.abcd_123.partial",
            "prerequisites/.teacher.safetensors.abcd_123.partial",
        ],
        False: [
            ".recipe.yaml.mine.partial",
            ".download.abcd_123.partial",
            "checkpoints/.step_best.pt.abcd_123.partial",
            "checkpoints/.epoch_3.pth.partial",
            "samples/step_00000012.png.partial",
            "other/.recipe.yaml.abcd_123.partial",
        ],
    }
    for name in [*names[True], *names[False]]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    remove_partial_files(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.partial")}
    assert left == set(names[False])


# Figures


def add_figures(path, process):
    for number in range(10):
        RunFolder(path).write_metrics({f"{process}, {number}": number})


def test_figures_of_processes_that_end_at_once_are_all_kept(tmp_path):
    (tmp_path / ".metrics.json.abcd_123.partial").write_text("{")  # of an evaluation that was killed
    RunFolder(tmp_path).write_metrics({"updates": 3})
    fork = multiprocessing.get_context("fork")  # importing torch anew takes seconds
    processes = [fork.Process(target=add_figures, args=(tmp_path, number)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    expected = {f"{process}, {number}": number for process in range(6) for number in range(10)}
    assert RunFolder(tmp_path).metrics == {"updates": 3, **expected}
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("text", ["[1]", "3", '{"a": ', "", "[" * 100_000, "\0"])
def test_figures_that_are_no_object_are_refused_and_stay(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.metrics_file.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json: .*; repair or remove it"):
        folder.write_metrics({"updates": 3})
    assert folder.metrics_file.read_text() == text


# Averages


def test_every_average_has_a_name(finished_run):
    run = open_run(finished_run)
    assert run.exported_average == "main" and run.averages == ["none", "slow"]
    last = torch.load(next((finished_run / "checkpoints").iterdir()), weights_only=True)
    for name, state in (
        ("main", last["averages"]["main"]),
        ("slow", last["averages"]["slow"]),
        ("none", last["model"]),
    ):
        weights = run.weights(name)
        assert all(weights[key.removeprefix("flow.")].equal(value) for key, value in state.items())
        assert run.generator(average=name).sample([3], seed=0).isfinite().all()
    assert all(value.equal(run.weights("main")[key]) for key, value in run.weights().items())
    assert not run.weights("none")["flow_blocks.0.out.weight"].equal(run.weights()["flow_blocks.0.out.weight"])
    with pytest.raises(UserError, match=r"no average 'mian' \(there is: main, none, slow\); nearest match: 'main'"):
        run.weights("mian")


def test_without_averages_the_exported_weights_are_the_weights_themselves(run):
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("ema:", "published:"))
    opened = open_run(run)
    assert opened.exported_average == "none"
    assert opened.weights_file("none") == opened.weights_file() == run / "generator.safetensors"


def test_an_evaluation_of_the_exported_average_by_its_name_is_the_usual_one(run):
    before = json.loads((run / "metrics.json").read_text())
    evaluate_run(open_run(run), average="main")
    assert json.loads((run / "metrics.json").read_text()) == before
    evaluate_run(open_run(run), average="none")
    added = json.loads((run / "metrics.json").read_text()).keys() - before.keys()
    assert [key.endswith("average none") for key in added] == [True]


# Copies


def test_damaged_copies_are_refused(run, tmp_path):
    other = RunFolder(tmp_path / "other")
    other.keep_prerequisite("teacher", RunFolder(run).weights_file())
    kept = other.prerequisite_file("teacher")
    content = kept.read_bytes()
    for path in (kept, run / "generator.safetensors"):
        path.unlink()
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(UserError, match="damaged: its weights are not those of the digest"):
            read_weights(path)
    with pytest.raises(UserError, match=r"generator\.safetensors: damaged"):
        open_run(run).generator()
    write_weights(run / "generator.safetensors", read_weights(run / "generator-slow.safetensors"))
    open_run(run).generator()
