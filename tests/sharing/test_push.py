"""What is published of a run, what is asked for first, and what stays at home; by the hub's own client."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from genflow.cli.scripts import run_command
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import dump_yaml
from genflow.errors import UserError
from genflow.runs.folder import Run, open_run
from genflow.runs.hub import HubName
from genflow.runs.ownership import signed
from genflow.sharing.card import Facts, model_card
from genflow.sharing.push import check_place, contents, push

NAME = HubName("me/tiny")


@pytest.fixture
def share(monkeypatch, capsys):
    """Runs the command in this process; returns its exit code, and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["share", *map(str, arguments)])
        code = 0
        try:
            run_command("share")
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


def test_a_run_is_listed_and_published(share, hub, finished_run):
    code, out, _ = share("push", finished_run, "me/tiny", "--licence", "MIT", "--private")
    (commit,) = (hub.repositories["me/tiny"]["head"],)
    assert code == 0 and out.splitlines()[-1] == f"published: hub:me/tiny@{commit}"
    files = hub.files("me/tiny")
    grid = "samples/step_00000003.png"
    weights = {"generator.safetensors", "generator-slow.safetensors", "generator-none.safetensors"}
    assert files.keys() == {".gitattributes", "README.md", "recipe.yaml", "metrics.json", grid, *weights}
    assert hub.repositories["me/tiny"]["private"] and set(hub.blobs.values()) == {files[name] for name in weights}
    for name in (*weights, grid):
        assert files[name] == (finished_run / name).read_bytes()
        assert f"{len(files[name]):,} bytes  {name}" in out
    assert "metrics.json has the names of 10 classes" in out and "licence MIT" in out


def test_the_card_says_what_recipe_and_figures_do(published, finished_run):
    card = ModelCard(published["README.md"].decode())
    figures = open_run(finished_run).metrics["evaluation"]
    assert card.data.license == "mit" and card.data.library_name == "genflow"
    assert {"MaximumLikelihood", "arxiv:2412.06329"} <= set(card.data.tags)
    results = {entry.metric_name or entry.metric_type: entry for entry in card.data.eval_results}
    assert {name: entry.metric_value for name, entry in results.items()} == figures["model"]
    assert results["fd"].metric_args["samples"] == 20 and results["fd"].dataset_name == "Digits"
    for said in (
        "https://arxiv.org/abs/2412.06329",
        'genflow.open_run("hub:me/tiny")',
        "tools/sample.py hub:me/tiny",
        f"| network evaluations per image (NFE) | {figures['nfe']} |",
        "`main` (as exported), `none`, `slow`",
        f"| accuracy | {figures['model']['accuracy']:.4g} | {figures['real']['accuracy']:.4g} |",
        "type: DigitsEvaluator",
        "Trained for 3 updates, 24 images, seed 0.",
        "![Samples](samples/step_00000003.png)",
    ):
        assert said in card.text, said


def test_without_a_licence_nothing_is_done(share, hub, finished_run):
    code, _, errors = share("push", finished_run, "me/tiny")
    assert code == 2 and errors.startswith("error: --licence: missing; ") and "CC-BY-4.0" in errors
    assert errors.count("\n") == 1 and hub.asked == []


def test_a_licence_that_the_hub_does_not_know_leaves_nothing(share, hub, finished_run):
    code, _, errors = share("push", finished_run, "me/tiny", "--licence", "MIT-ish")
    assert code == 2 and '"license" must be one of' in errors and hub.repositories == {}


def test_a_dry_run_writes_a_run_folder_and_asks_nobody(share, hub, finished_run, tmp_path):
    look = tmp_path / "look"
    assert share("push", finished_run, "me/tiny", "--licence", "MIT", "--scalars", "--dry-run", look)[0] == 0
    assert hub.asked == [] and (look / "scalars.jsonl").read_bytes() == (finished_run / "scalars.jsonl").read_bytes()
    assert open_run(look).metrics == open_run(finished_run).metrics
    code, _, errors = share("push", finished_run, "me/tiny", "--licence", "MIT", "--dry-run", look)
    assert code == 2 and "is there already" in errors


def test_what_is_there_stays_unless_asked(share, hub, finished_run):
    old = {"README.md": b"of before", "generator-gone.safetensors": b"", "notes.txt": b"mine", ".gitattributes": b""}
    first = hub.put("me/tiny", old)
    code, _, errors = share("push", finished_run, "me/tiny", "--licence", "MIT")
    assert code == 2 and "is there already, with 'README.md'; --overwrite" in errors
    code, _, errors = share("push", finished_run, "me/tiny", "--licence", "MIT", "--overwrite", "--private")
    assert code == 2 and "is there already and public" in errors and hub.files("me/tiny") == old
    code, out, _ = share("push", finished_run, "me/tiny", "--licence", "MIT", "--overwrite")
    assert code == 0 and "goes, but for older revisions: generator-gone.safetensors" in out
    files = hub.files("me/tiny")
    assert files["notes.txt"] == b"mine" and "generator-gone.safetensors" not in files
    assert hub.files("me/tiny", first) == old
    with pytest.raises(UserError, match="name none"):
        check_place(HubName("me/tiny", "v1"), False, False)


def test_paths_of_the_machine_stay(copied):
    run = open_run(copied)
    recipe = {**run.graph.plain, "published": {"source": "/home/somebody/secret/paper.pdf"}}
    (copied / "recipe.yaml").write_text(signed(dump_yaml(recipe)))
    run = open_run(copied)
    run.write_metrics({"evaluation, train_dataloader.dataset.data_root=/home/somebody/secret/photos": {"model": {}}})
    (copied / "generator-mine.safetensors").write_bytes(b"no average of this recipe")
    (copied / "notes.txt").write_text("mine")
    files, cut = contents(run, NAME, "mit")
    assert cut == {"recipe.yaml: published.source": "paper.pdf"} and "published.source=YOURS" in str(files["README.md"])
    assert not {"generator-mine.safetensors", "notes.txt", "scalars.jsonl"} & files.keys()
    for content in files.values():
        stored = content if isinstance(content, bytes) else content.read_bytes()
        assert b"secret" not in stored and b"somebody" not in stored and str(copied.parent).encode() not in stored
    assert "evaluation, train_dataloader.dataset.data_root=photos" in json.loads(files["metrics.json"])
    graph = ComponentGraph.from_recipe(yaml.safe_load(files["recipe.yaml"]))
    assert graph.model.cls.__name__ == "MaximumLikelihood"


def test_damaged_weights_are_not_published(copied):
    file = copied / "generator-slow.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"generator-slow.safetensors: not a complete safetensors file"):
        contents(open_run(copied), NAME, "mit")


def test_a_hub_out_of_reach_is_one_line(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^hub:me/tiny: "):
        push(NAME, {"README.md": b"---\nlicense: mit\n---\n"}, False, [], "a message")


def test_the_card_of_what_does_not_sample(tmp_path):
    """An encoder has no samples to make, and no figures of any."""
    root = Path(__file__).parents[2]
    run = Run(tmp_path, ComponentGraph.load(root / "recipes" / "classifier_digits.yaml"))
    card = model_card(run, Facts("me/encoder", "mit", run.graph.plain, {}, {}, []))
    assert card.data.pipeline_tag is None and "Classification" in card.data.tags
    assert not any("generation" in tag for tag in card.data.tags)
    assert "trained = run.method().encoder" in card.text and "sample" not in card.text.split("## Model")[0]
