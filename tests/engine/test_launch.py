"""Processes: the launcher is found, one training at a time in a folder, mistakes are said once."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import started
import torch

from genflow.engine.distributed import find_launcher, start_process_group
from genflow.engine.lock import LOCK_FILE, working_in
from genflow.errors import UserError
from genflow.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
FLOW = ("width=16", "head_width=8", "blocks=2", "layers=1")
OPTIONS = [
    "train_cfg.max_iters=3",
    "train_dataloader.batch_size=8",
    "default_hooks.samples.per_class=1",
    *(f"model.flow.{option}" for option in FLOW),
    "evaluation=null",
]


def command(work_dir, *options, processes=1, recipe="itarflow_digits"):
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    tool = [ROOT / "tools" / "train.py", ROOT / "recipes" / f"{recipe}.yaml", "--work-dir", work_dir]
    return [*launch, *map(str, tool), "--cfg-options", *options]


def run(*arguments, **options):
    start = subprocess.run if options.get("processes", 1) > 1 else started.run
    return start(command(*arguments, **options), check=False, capture_output=True, text=True, cwd="/", timeout=300)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "none"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "none"),  # a batch script, not srun
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, "slurm"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}, "pytorch"),
    ],
)
def test_the_launcher_is_found(monkeypatch, variables, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_launcher("auto") == expected and find_launcher("none") == "none"


@pytest.mark.parametrize(
    ("launcher", "rank", "gpus", "expected"),
    [("pytorch", 1, 2, 1), ("slurm", 3, 1, 0), ("slurm", 3, 4, 3), ("pytorch", 2, 2, None), ("slurm", 2, 2, None)],
)
def test_every_process_has_a_gpu_of_its_own(monkeypatch, launcher, rank, gpus, expected):
    started_with = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", started_with.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **more: started_with.append(backend))
    environment = {"RANK": rank, "WORLD_SIZE": 8, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "SLURM_PROCID": rank}
    environment |= {"SLURM_NTASKS": 8, "SLURM_LOCALID": rank}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    if expected is None:
        with pytest.raises(UserError, match=f"found at least {rank + 1} processes on this machine, which has 2 GPU"):
            start_process_group(launcher)
        return
    start_process_group(launcher)
    assert started_with == [torch.device("cuda", expected), "nccl"] and os.environ["LOCAL_RANK"] == str(expected)


@pytest.mark.slow
def test_torchrun_without_a_launcher_trains_once(tmp_path):
    done = run(tmp_path / "run", *OPTIONS, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "scalars.jsonl").read_text().count("\n") == 3
    assert "2 process(es)" in done.stdout


@pytest.mark.slow
def test_a_mistake_is_said_once(tmp_path):
    done = run(tmp_path / "run", *OPTIONS, "model.flow.witdh=3", processes=2)
    assert done.returncode and done.stderr.count("has no argument 'witdh'") == 1
    assert "model.flow.witdh" in done.stderr and not (tmp_path / "run").exists()


def test_a_folder_at_work_is_refused_and_says_who_works_there(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with working_in(folder):
        done = run(folder.path, *OPTIONS)
        assert done.returncode == 2
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        assert re.search(rf"error: {folder}: {owner} trains in it; wait for it, or remove .*{LOCK_FILE}", done.stderr)
        assert [path.name for path in folder.path.iterdir()] == [LOCK_FILE]
    assert not folder.path.exists()


def test_the_lock_of_a_dead_process_does_not_hold(tmp_path):
    work_dir = tmp_path / "run"
    process = started.Started(
        command(work_dir, *OPTIONS, "train_cfg.max_iters=100000"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (work_dir / "scalars.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (work_dir / LOCK_FILE).exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with working_in(RunFolder(work_dir)):
        pass
    assert not (work_dir / LOCK_FILE).exists() and (work_dir / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("job", "count", "held"),
    [("7", "1", True), ("7", "2", False), ("8", "2", True), (None, None, True)],
    ids=["the same start", "requeued", "another job", "no job"],
)
def test_the_lock_of_an_earlier_start_of_a_job_does_not_hold(tmp_path, monkeypatch, job, count, held):
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with working_in(folder):
        left = {path.name: path.read_text() for path in folder.path.iterdir()}
    assert not folder.path.exists() and len(left) == 2
    folder.path.mkdir()
    process, _, *rest = left[LOCK_FILE].split("\n")
    left[LOCK_FILE] = "\n".join([process, "elsewhere", *rest])
    for name, text in left.items():
        (folder.path / name).write_text(text)
    for name, value in {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": count}.items():
        monkeypatch.delenv(name)
        if value is not None:
            monkeypatch.setenv(name, value)
    if held:
        with pytest.raises(UserError, match=f"process {process} on elsewhere trains in it"), working_in(folder):
            pass
        assert len(list(folder.path.iterdir())) == 2
    else:
        with working_in(folder):
            assert "elsewhere" not in (folder.path / LOCK_FILE).read_text()
        assert not list(folder.path.iterdir())


def test_two_runs_share_the_prerequisite_that_one_of_them_trains(tmp_path):
    teacher = "prerequisites.teacher.recipe"
    options = [
        *(item for item in OPTIONS if not item.startswith("model")),
        *(f"{teacher}.{item}" for item in OPTIONS),
        f"{teacher}.train_cfg.max_iters=30",
        *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "layers=1", "groups=2")),
    ]
    processes = [
        started.Started(
            command(tmp_path / name, *options, recipe="biflow_digits"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "two")
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum("holds no finished run, training" in text for text in said) == 1
    assert sum(f"prerequisite 'teacher': using {tmp_path / 'itarflow_digits'}" in text for text in said) == 1
    assert (tmp_path / "itarflow_digits" / "scalars.jsonl").read_text().count("\n") == 30


def test_working_in_again_is_refused_within_a_process_too(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with working_in(folder), pytest.raises(UserError, match="trains in it"), working_in(folder):
        pass
