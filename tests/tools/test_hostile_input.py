"""What a user or a stranger may give the tools: one line on stderr, exit code 2, nothing executed, nothing written."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import started
import torch

from genflow.weights import read_checkpoint, write_checkpoint

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


class Payload:
    """Pickles as a call that creates the folder ``marker``."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def snapshot(folder):
    """Every file and folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check(code, errors):
    assert code == 2, errors
    assert "Traceback" not in errors and errors.startswith("error: ")
    assert errors.endswith("\n") and errors[:-1].isprintable(), "more than one line"


@pytest.fixture
def run(finished_run, here):
    """A copy of a finished run in the working folder."""
    return Path(shutil.copytree(finished_run, here / "run").name)


@pytest.fixture
def tiny(tiny_file, here):
    """The tiny recipe in the working folder."""
    return Path(shutil.copy(tiny_file, here / "tiny.yaml")).name


# In processes of their own: the whole of stdout and stderr, and the exit code


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("train", ["tag.yaml"], "tag.yaml:1: not a valid recipe: found the tag '!!python/object/apply:os.mkdir', "),
        ("train", [f"{RECIPES}/itarflow_b2_imagenet.yaml"], "data_root 'data/imagenet256_latents' has no latent cache"),
        ("train", ["tiny.yaml", "--work-dir", "w", "--resume", "code.pt"], "code.pt: refused: a checkpoint may hold "),
        ("sample", ["run", "--labels", "10", "--out", "x.png"], "--labels: found 10, expected 0 to 9"),
        ("evaluate", ["empty"], "empty: not a finished run: recipe.yaml and generator.safetensors missing"),
    ],
)
def test_in_a_process_of_its_own(tool, arguments, message, here, tiny, run):
    Path("tag.yaml").write_text("model: !!python/object/apply:os.mkdir ['marker']\n")
    torch.save({"step": 1, "format": 1, "model": Payload()}, "code.pt")
    Path("empty").mkdir()
    before = snapshot(here)
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *arguments]
    done = started.run(command, capture_output=True, text=True, check=False, timeout=120)
    check(done.returncode, done.stderr)
    assert message in done.stderr and done.stdout == ""
    assert snapshot(here) == before and "marker" not in before


# Recipes


@pytest.mark.parametrize("tool", ["train", "show_recipe", "analyze_flops"])
@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.mkdir ['marker']",
        "!!python/object/new:os.mkdir ['marker']",
        "seed: 1\npublished: {x: [!!python/name:os.mkdir '']}",
    ],
)
def test_tags_in_a_recipe(refused, tool, text):
    Path("recipe.yaml").write_text(text)
    assert refused(tool, "recipe.yaml").startswith("error: recipe.yaml:")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.type=BiFlo", "tiny.yaml: model.type: found 'BiFlo', expected the name of a method; nearest match: 'Bi"),
        ("model.flow.widht=3", "tiny.yaml: model.flow.widht: TARFlow has no argument 'widht'; nearest match: 'width'"),
        ("train_cfg.max_itres=3", "tiny.yaml: train_cfg.max_itres: unknown key; nearest match: 'max_iters'"),
        ("model.flow={type: SquaredError}", "tiny.yaml: model.flow.type: found 'SquaredError', which is a loss, "),
        ("model.flow=$flow", "tiny.yaml: model.flow: found '$flow', expected one of the shared components and "),
        ("prerequisites={teacher: teacher.yaml}", "tiny.yaml: prerequisites.teacher: recipe 'teacher.yaml' does not"),
        ("optim_wrapper.optimizer.lr=fast", "tiny.yaml: optim_wrapper.optimizer.lr: found 'fast', expected a number"),
        ("seed=!!python/object/apply:os.mkdir [marker]", "--cfg-options seed:1: not a valid recipe: found the tag"),
        ("custom_imports=[no_such_module]", "tiny.yaml: custom_imports: cannot import 'no_such_module' from PYTHO"),
        ("optim_wrapper.optimizer.lr=-1", "tiny.yaml: optim_wrapper.optimizer.lr: found -1, expected a number"),
        ("model.flow.patch_size=3", "tiny.yaml: model.flow: image_size 8 is not a multiple of patch_size 3"),
        ("train_cfg=null", "tiny.yaml: train_cfg: missing, training needs it"),
        ("train_cfg.max_iters", "--cfg-options: found 'train_cfg.max_iters', expected key=value"),
    ],
)
def test_mistakes_in_a_recipe(refused, tiny, override, message):
    assert refused("train", tiny, "--cfg-options", override).removeprefix("error: ").startswith(message)


@pytest.mark.parametrize("tool", ["show_recipe", "analyze_flops"])
def test_the_other_tools_that_read_recipes_refuse_them_too(refused, tiny, tool):
    line = refused(tool, tiny, "--cfg-options", "model.flow.widht=3")
    assert line == "error: tiny.yaml: model.flow.widht: TARFlow has no argument 'widht'; nearest match: 'width'"
    assert refused(tool, "tyny.yaml") == "error: tyny.yaml: no such recipe; nearest match: 'tiny'"


def test_a_prerequisite_that_does_not_exist(refused):
    Path("student.yaml").write_text("prerequisites: {teacher: itarflow_digits.yaml}\nmodel: {type: BiFlow}\n")
    Path("itarflow_digit.yaml").write_text("seed: 1")
    assert refused("train", "student.yaml") == (
        "error: student.yaml: prerequisites.teacher: recipe 'itarflow_digits.yaml' does not exist; "
        "nearest match: 'itarflow_digit'"
    )


def test_the_latent_cache_is_missing_or_incomplete(refused, here, monkeypatch):
    monkeypatch.setenv("GENFLOW_DATA", "my data")
    cache = here / "my data" / "imagenet256_latents"
    cache.mkdir(parents=True)
    (cache / "labels.npy").write_bytes(b"")
    recipe = RECIPES / "biflow_b2_imagenet.yaml"
    assert refused("train", recipe) == (
        f"error: {recipe}: train_dataloader.dataset: data_root 'my data/imagenet256_latents' has no latent cache: "
        "cache.json and moments.npy are missing"
    )


# Checkpoints and run folders


def test_a_truncated_checkpoint(refused, tiny, run):
    newest = next((run / "checkpoints").iterdir())
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert refused("train", tiny, "--resume", newest).startswith(f"error: {newest}: not a complete checkpoint: ")
    assert refused("train", tiny, "--work-dir", run, "--resume").startswith(f"error: {newest}: not a complete checkp")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_checkpoint_with_pickled_code(refused, tiny, here, form):
    state = {"step": 1, "format": 1, "seed": 0, "model": {"a": torch.ones(1)}, "optimizer": Payload()}
    if form == "pickle":
        Path("code.pt").write_bytes(pickle.dumps(state))
    else:
        torch.save(state, "code.pt", _use_new_zipfile_serialization=form == "zip")
    line = refused("train", tiny, "--resume", "code.pt")
    assert line == "error: code.pt: refused: a checkpoint may hold tensors and plain values only"
    assert not (here / "marker").exists()


def test_a_checkpoint_of_another_recipe(refused, tiny, run):
    newest = next((run / "checkpoints").iterdir())
    line = refused("train", tiny, "--work-dir", "new", "--resume", newest, "--cfg-options", "model.flow.width=24")
    assert line.startswith(f"error: {newest}: does not continue this recipe: 'flow.") and "has shape (" in line
    line = refused("train", tiny, "--work-dir", "new", "--resume", newest, "--seed", "1")
    assert line.startswith(f"error: {run}: cannot go on exactly: seed: nothing in the run, 1 now; ")


def test_no_checkpoint(refused, tiny, run):
    assert refused("train", tiny, "--resume", "none.pt") == "error: none.pt: no such checkpoint"
    assert refused("train", tiny, "--resume", run) == f"error: {run}: no such checkpoint"
    write_checkpoint(Path("other.pt"), {"epoch": 1})
    line = refused("train", tiny, "--resume", "other.pt")
    assert line == "error: other.pt: not a training checkpoint of GenFlow: it has no 'step'"


def test_a_finished_run_is_not_overwritten(refused, tiny, run):
    message = "holds a run already; pass --resume to continue it or another --work-dir"
    assert refused("train", tiny, "--work-dir", run) == f"error: {run}: {message}"
    shutil.rmtree(run / "checkpoints")
    assert refused("train", tiny, "--work-dir", run) == f"error: {run}: {message}"


@pytest.mark.parametrize("tool", ["sample", "evaluate"])
def test_folders_that_hold_no_finished_run(refused, tool, here, run):
    more = ["--out", "x.png"] if tool == "sample" else []
    Path("empty").mkdir()
    line = "error: empty: not a finished run: recipe.yaml and generator.safetensors missing"
    assert refused(tool, "empty", *more) == line
    assert "rum: no such run folder; nearest match: 'run'" in refused(tool, "rum", *more)
    assert refused(tool, run / "recipe.yaml", *more).startswith("error: run/recipe.yaml: no such run folder")
    (run / "generator.safetensors").rename(run / "weights")
    line = refused(tool, run, *more)
    assert line.startswith("error: run: not a finished run: generator.safetensors missing; ") and "--resume" in line
    (run / "generator.safetensors").write_bytes((run / "weights").read_bytes()[:-10])
    line = refused(tool, run, *more)
    assert line.startswith("error: run/generator.safetensors: not a complete safetensors file: ")
    torch.save(Payload(), run / "generator.safetensors")
    assert refused(tool, run, *more).startswith("error: run/generator.safetensors: not a complete safetensors file: ")
    assert not (here / "marker").exists()
    (run / "weights").replace(run / "generator.safetensors")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("width: 16", "width: 24"))
    line = refused(tool, run, *more)
    assert line.startswith("error: run/generator.safetensors: does not fit run/recipe.yaml: '") and "has shape" in line
    (run / "recipe.yaml").write_text(recipe + "marker: !!python/object/apply:os.mkdir ['marker']\n")
    assert "found the tag '!!python/object/apply:os.mkdir'" in refused(tool, run, *more)


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "10"], "--labels: found 10, expected 0 to 9"),
        (["--labels", "3", "-1"], "--labels: found -1, expected 0 to 9"),
        (["--num", "0"], "--num: found 0, expected 1 to 10,000,000"),
        (["--num", "2", "--per-class", "2"], "--num and --per-class exclude each other"),
        (["--batch-size", "0"], "--batch-size: found 0, expected at least 1"),
        (["--guidance", "nan"], "--guidance: found nan, expected a finite number"),
        (["--average", "slwo"], "run: no average 'slwo' (there is: main, none, slow); nearest match: 'slow'"),
        (["--device", "tpu"], "argument --device: this machine has no device 'tpu' (--help shows an example)"),
        (["--device", "meta"], "argument --device: this machine has no device 'meta' (--help shows an example)"),
        (["--device", "cuda:99"], "argument --device: this machine has no device 'cuda:99' (--help shows an example)"),
        (["--labels", "three"], "--labels: found three, expected 0 to 9 or a class's name"),
        (["--bogus"], "unrecognized arguments: --bogus (--help shows an example)"),
        (["--out", "x.jpg"], "--out: found 'x.jpg', expected a name ending in .png or .npz, or a folder"),
        (["--out", "run/recipe"], "--out: found 'run/recipe', "),
        (["--out", "run/recipe.yaml/x.png"], "[Errno 17] File exists: 'run/recipe.yaml'"),
    ],
)
def test_options_of_sample(refused, run, arguments, message):
    if arguments[1:] == ["run/recipe"]:
        (run / "recipe").write_text("mine")
        message = "--out: 'run/recipe' is a file already"
    assert refused("sample", run, "--out", "x.png", *arguments).startswith(f"error: {message}")


@pytest.mark.parametrize("tool", ["train", "sample", "evaluate", "show_recipe", "analyze_flops"])
def test_unknown_and_missing_options(refused, tool):
    more = ["--out", "x.png"] if tool == "sample" else []
    assert "unrecognized arguments: --bogus" in refused(tool, ".", *more, "--bogus")
    assert "the following arguments are required: " in refused(tool)


def test_options_of_train(refused, tiny, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert "argument --seed: invalid int value: 'x'" in refused("train", tiny, "--seed", "x")
    assert "argument --launcher: invalid choice: 'mpi'" in refused("train", tiny, "--launcher", "mpi")
    line = refused("train", tiny, "--launcher", "pytorch")
    assert line.startswith("error: --launcher pytorch: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR not set; start with ")
    assert f"seed: found {2**64}, expected an integer from" in refused("train", tiny, "--seed", 2**64)
    assert "Not a directory" in refused("train", tiny, "--work-dir", "tiny.yaml/run")


def test_names_with_line_breaks_stay_one_line(refused):
    assert refused("train", "a\nb.yaml") == "error: a b.yaml: no such recipe"
    assert refused("sample", "a\nb", "--out", "x.png").startswith("error: a b: no such run folder")


def test_the_checkpoint_that_is_damaged_above_was_whole(run):
    assert read_checkpoint(next((run / "checkpoints").iterdir()))["step"] == 3
