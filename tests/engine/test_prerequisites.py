"""Finished runs as prerequisites: taken if they trained what the recipe expects, refused with both values otherwise."""

import json
import shutil

import pytest
import torch

from genflow.config.recipe import dump_yaml
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.runs.folder import RunFolder, open_run
from genflow.weights import read_weights

DIGITS = {"image_size": 8, "channels": 1}
TEACHER = "prerequisites.teacher.recipe"


@pytest.fixture
def student(tmp_path, tiny_file, finished_run):
    """Trains a small BiFlow whose teacher is the finished run; returns its folder."""
    backbone = {"type": "GroupedMLP", **DIGITS, "width": 8, "groups": 2, "layers": 1, "num_classes": 10}
    recipe = {
        "model": {
            "type": "BiFlow",
            "teacher": "$teacher",
            "codec": {"type": "Identity", **DIGITS},
            "noise_std": 0.3,
            "inverse": {"type": "NaiveDistillation", "backbone": backbone},
            "reconstruction": {"type": "SquaredError"},
        },
        "prerequisites": {"teacher": {"recipe": tiny_file.name, "run": str(finished_run)}},
        "train_dataloader": {"dataset": {"type": "Digits"}, "batch_size": 8},
        "train_cfg": {"max_iters": 1},
        "optim_wrapper": {"optimizer": {"type": "AdamW"}},
        "default_hooks": {"samples": {"per_class": 1}},
    }
    path = tmp_path / "student.yaml"
    path.write_text(dump_yaml(recipe), encoding="utf-8")
    return lambda *overrides, **options: train(path, overrides, options=TrainOptions(tmp_path / "run", **options))


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("model.flow.head_width=16", "model.flow.head_width is 8 there and 16 here"),  # of the same shapes
        ("model.flow.clip=soft", "model.flow.clip is 'hard' there and 'soft' here"),
        (
            "train_dataloader.dataset.split=test",
            "train_dataloader.dataset.split is 'train' there and 'test' here",
        ),
    ],
)
def test_a_run_of_another_recipe_is_refused(student, tmp_path, finished_run, override, difference):
    with pytest.raises(UserError) as caught:
        student(f"{TEACHER}.{override}")
    where = f"{tmp_path / 'student.yaml'}: prerequisites.teacher: {finished_run} was trained with another recipe"
    assert str(caught.value) == f"{where}: {difference}; train it in another folder"
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_same_recipe_is_taken(student, finished_run, capfd):
    """With a default written out, and another length, rate and evaluation."""
    same = ("model.flow.clip=hard", "train_cfg.max_iters=7", "optim_wrapper.optimizer.lr=3", "evaluation=null")
    run = student(*(f"{TEACHER}.{override}" for override in same))
    assert capfd.readouterr().out.splitlines()[0] == f"prerequisite 'teacher': using {finished_run}"
    expected = read_weights(finished_run / "generator.safetensors")
    teacher = open_run(run).method().teacher.state_dict()
    assert teacher.keys() == expected.keys() and all(torch.equal(teacher[name], expected[name]) for name in expected)


def test_a_prerequisite_whose_evaluation_was_killed_is_evaluated(student, finished_run, tmp_path):
    own = shutil.copytree(finished_run, tmp_path / "teacher")
    metrics = RunFolder(own).metrics
    killed = {name: value for name, value in metrics.items() if name != "evaluation"}
    RunFolder(own).metrics_file.write_text(json.dumps(killed))
    student(f"prerequisites.teacher.run={own}", f"{TEACHER}.evaluation.per_class=1")  # it had another
    assert RunFolder(own).metrics == killed
    shutil.rmtree(tmp_path / "run")
    student(f"prerequisites.teacher.run={own}")
    assert RunFolder(own).metrics == metrics


def test_a_run_stands_alone_and_can_move(student, tmp_path):
    run = student()
    moved = run.rename(tmp_path / "moved")
    assert (moved / "prerequisites" / "teacher.safetensors").is_file()
    generator = open_run(moved, ["prerequisites.teacher.run=gone"]).generator()
    assert generator.sample(torch.arange(10), seed=0).isfinite().all()


def teacher_of(run):
    return (run / "prerequisites" / "teacher.safetensors").read_bytes()


def test_a_resumed_run_keeps_the_weights_that_it_began_with(student, finished_run, tmp_path, tiny_file, capfd):
    own = f"prerequisites.teacher.run={tmp_path / 'teacher'}"
    shutil.copytree(finished_run, tmp_path / "teacher")
    run = student(own)
    kept = teacher_of(run)
    shutil.rmtree(tmp_path / "teacher")  # and another one in its place, of the same recipe
    train(tiny_file, {"train_cfg.max_iters": 1, "evaluation": None}, 5, TrainOptions(tmp_path / "teacher"))
    capfd.readouterr()
    student(own, "train_cfg.max_iters=2", resume="auto")
    assert "prerequisite 'teacher': using the weights that the run keeps" in capfd.readouterr().out
    assert teacher_of(run) == kept and RunFolder(run).metrics["updates"] == 2
    assert teacher_of(run) != (tmp_path / "teacher" / "generator.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "teacher")  # nothing is trained again
    student(own, "train_cfg.max_iters=3", resume="auto")
    assert teacher_of(run) == kept and not (tmp_path / "teacher").exists()


def test_a_resumed_run_with_another_teacher_is_another_run(student, finished_run, tmp_path):
    run = student()
    with pytest.raises(UserError) as caught:
        student("train_cfg.max_iters=2", f"{TEACHER}.model.flow.clip=soft", resume="auto")
    difference = "prerequisites.teacher changed: model.flow.clip is 'hard' there and 'soft' here"
    assert str(caught.value).startswith(f"{run}: cannot go on exactly: {difference}; --allow-change ")


def test_a_checkpoint_in_a_new_folder_goes_on_with_its_own_run(student, finished_run, tmp_path):
    run = student("default_hooks.checkpoint.interval=1")
    kept = teacher_of(run)
    moved = run.rename(tmp_path / "old")
    checkpoint = str(moved / "checkpoints" / "step_00000001.pt")
    for change in ("model.noise_std=0.5", "train_dataloader.batch_size=4"):
        with pytest.raises(UserError, match=f"cannot go on exactly: {change.split('=')[0]}"):
            student("train_cfg.max_iters=2", change, resume=checkpoint)
    new = student("train_cfg.max_iters=2", resume=checkpoint)
    assert teacher_of(new) == kept and RunFolder(new).metrics["updates"] == 2
