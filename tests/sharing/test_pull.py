"""Runs that are opened by their name on the hub, or taken from there: whole, and nothing but a run's files."""

from pathlib import Path

import pytest
import torch

from genflow.errors import UserError
from genflow.runs.evaluate import evaluate_run
from genflow.runs.folder import open_run
from genflow.runs.hub import HubName, in_one_line, is_shared
from genflow.runs.hub import hub as client
from genflow.sharing.pull import pull


def samples(run):
    return run.generator().sample([3, 7], seed=0)


def test_a_run_is_opened_by_its_name(hub, published, finished_run):
    commit = hub.put(
        "me/tiny", {**published, "evil.py": b"1 / 0", "model.pkl": b"?", "prerequisites/a/b.safetensors": b""}
    )
    run = open_run(Path("hub:me/tiny"))
    assert str(run) == "hub:me/tiny" and run.name == "tiny" and run.path.name == commit
    assert torch.equal(samples(run), samples(open_run(finished_run)))
    kept = {file.relative_to(run.path).as_posix() for file in run.path.rglob("*") if file.is_file()}
    assert kept == {name for name in published if name.endswith((".yaml", ".json", ".safetensors"))}
    asked = {path for method, path in hub.asked if method == "GET"}
    assert not any("evil" in path or "model.pkl" in path or "a/b" in path for path in asked)
    with pytest.raises(UserError, match=r"the hub's cache, where nothing is written; .* tools/share.py pull me/tiny"):
        evaluate_run(run)
    assert not (run.path / ".evaluation").exists()


def test_a_revision_is_what_it_was(hub, published):
    first = hub.put("me/tiny", published)
    changed = {**published, "generator.safetensors": published["generator-slow.safetensors"]}
    hub.put("me/tiny", changed)
    newest, old = open_run("hub:me/tiny"), open_run(f"hub:me/tiny@{first}")
    assert not torch.equal(samples(newest), samples(old))
    assert torch.equal(samples(newest), newest.generator(average="slow").sample([3, 7], seed=0))
    with pytest.raises(UserError, match=r"^hub:me/tiny@v9: the hub has no revision 'v9' of it$"):
        open_run("hub:me/tiny@v9")


def test_a_run_folder_is_made(hub, published, finished_run, tmp_path):
    hub.put("me/tiny", {**published, "evil.py": b"1 / 0", "checkpoints/step_00000003.pt": b"?"})
    out = tmp_path / "out"
    assert set(pull(HubName("me/tiny"), out)) == published.keys()
    assert {
        file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()
    } == published
    assert not any(file.is_symlink() for file in out.rglob("*"))
    run = open_run(out)
    assert torch.equal(samples(run), samples(open_run(finished_run)))
    run.write_metrics({"note": 1})  # a folder like any other
    with pytest.raises(UserError, match=r"is there already; name another folder$"):
        pull(HubName("me/tiny"), out)


def damaged(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("recipe.yaml"), "hub:me/tiny: not a run of GenFlow: recipe.yaml missing"),
        (lambda files: files.pop("generator.safetensors"), "not a run of GenFlow: generator.safetensors missing"),
        (
            lambda files: files.update({"generator-slow.safetensors": damaged(files["generator-slow.safetensors"])}),
            "hub:me/tiny/generator-slow.safetensors: damaged",
        ),
        (
            lambda files: files.update({"recipe.yaml": files["recipe.yaml"].replace(b"width: 16", b"width: 24")}),
            "hub:me/tiny/generator.safetensors: does not fit",
        ),
        (lambda files: files.update({"recipe.yaml": b"model: !!python/object/apply:os.getcwd []\n"}), "hub:me/tiny"),
        (
            lambda files: files.update({"recipe.yaml": files["recipe.yaml"] + b"custom_imports: [antigravity]\n"}),
            "wants to import antigravity",
        ),
    ],
)
def test_what_is_no_whole_run_is_one_line_and_leaves_nothing(hub, published, tmp_path, change, message):
    files = dict(published)
    change(files)
    hub.put("me/tiny", files)
    (tmp_path / "work_dirs").mkdir()
    with pytest.raises(UserError) as caught:
        pull(HubName("me/tiny"), tmp_path / "work_dirs" / "out")
    assert message in str(caught.value) and str(tmp_path / "work_dirs") not in str(caught.value)
    assert list((tmp_path / "work_dirs").iterdir()) == []


def test_a_hub_without_the_run_or_out_of_reach(hub, monkeypatch):
    from huggingface_hub import constants

    with pytest.raises(UserError, match=r"^hub:me/tiny: the hub has no such model, or a private one of others; log in"):
        open_run("hub:me/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^hub:me/tiny: is not in the hub's cache, and the hub cannot be reached: "):
        open_run("hub:me/tiny")


def test_without_a_connection_the_cache_is_used(hub, published, monkeypatch):
    from huggingface_hub import constants

    hub.put("me/tiny", published)
    open_run("hub:me/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_run("hub:me/tiny").metrics["updates"] == 3


@pytest.mark.parametrize("text", ["hub:tiny", "hub:me/", "hub:me/../x", "hub:/etc/passwd", "hub:me/tiny@", "hub:a/b/c"])
def test_names_that_are_none(text):
    with pytest.raises(UserError, match="expected a run on the hub: user/name or user/name@revision"):
        open_run(text)


def test_a_missing_folder_mentions_the_hub_where_it_could_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^me/tiny: no such run folder; one on the hub would be hub:me/tiny$"):
        open_run("me/tiny")
    (tmp_path / "me").mkdir()
    with pytest.raises(UserError, match=r"^me/tiny: no such run folder$"):
        open_run("me/tiny")


def test_names_of_shared_files():
    assert is_shared("generator-half_life_3k.safetensors") and is_shared("prerequisites/teacher.safetensors")
    for name in (
        "generator-a/b.safetensors",
        "prerequisites/a/b.safetensors",
        "x.py",
        "samples/a/b.png",
        "../recipe.yaml",
    ):
        assert not is_shared(name)


def test_without_the_client_one_line_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package 'huggingface_hub': pip install \"genflow\[hub\]\"$"):
        client()


@pytest.mark.parametrize("error", [OSError("no\nroom"), ValueError("no room")])
def test_other_failures_are_one_line(error):
    with pytest.raises(UserError, match=r"^hub:me/tiny: no room$"), in_one_line(HubName("me/tiny")):
        raise error
