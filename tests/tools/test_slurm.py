"""The batch scripts of ``tools/slurm``, with stand-ins for ``srun`` and ``scontrol``: two processes on CPUs."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted((ROOT / "tools" / "slurm").glob("*.sbatch"))
#: Starts two processes with the variables that Slurm sets, passes USR1 on, and ends with the highest exit code.
SRUN = """#!{python}
import itertools, os, signal, subprocess, sys

words = sys.argv[1:]
options = list(itertools.takewhile(lambda word: word.startswith("--"), words))
with open({log!r}, "a") as log:
    print("srun", *options, file=log)
shared = {{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}}
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for rank in ("0", "1"):
    own = {{**os.environ, **shared, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}}
    tasks.append(subprocess.Popen(words[len(options):], env=own))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/bin/sh
echo scontrol "$@" >> '{log}'
"""
#: A process that has told that it listens to signals.
WAITING = "touch {ready}$SLURM_PROCID; while true; do sleep 0.05; done"
OPTIONS = (
    "train_cfg.max_iters=40",
    "train_dataloader.batch_size=8",
    "default_hooks.checkpoint.interval=1000",
    "default_hooks.samples.per_class=1",
    "evaluation=null",
    *(f"model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
)


@pytest.fixture
def slurm(tmp_path):
    """Runs a script as Slurm runs it; ``log`` holds what it asked of Slurm."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        file = programs / name
        file.write_text(text.format(python=sys.executable, log=str(log)))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = {
        **kept,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),  # the port follows from it
        "SLURM_CPUS_PER_TASK": "3",
        "RANK": "5",  # of another launcher, in the shell that submitted
    }

    def run(script, *arguments, **more):
        command = ["bash", str(ROOT / "tools" / "slurm" / f"{script}.sbatch"), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment | more, **pipes)

    run.log = log
    return run


def wait_for(condition, job):
    deadline = time.monotonic() + 300
    while not condition() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def updates(work_dir):
    path = work_dir / "scalars.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_training_stops_before_the_limit_and_goes_on_when_requeued(slurm, tmp_path):
    work_dir = tmp_path / "run"
    recipe = ROOT / "recipes" / "itarflow_digits.yaml"
    arguments = ("train", recipe, "--work-dir", work_dir, "--cfg-options", *OPTIONS)
    job = slurm(*arguments)
    wait_for(lambda: updates(work_dir) >= 2, job)
    job.send_signal(signal.SIGUSR1)  # as --signal=B:USR1 does, to the script alone
    said, _ = job.communicate(timeout=300)
    done = updates(work_dir)
    assert job.returncode == 138 and 2 <= done < 40, said
    assert f"stopped by SIGUSR1 after update {done}" in said and "Traceback" not in said
    requeue = f"scontrol requeue {os.getpid()}"
    assert slurm.log.read_text().splitlines() == ["srun --kill-on-bad-exit=1 --cpus-per-task=3", requeue]
    job = slurm(*arguments, SLURM_RESTART_COUNT="1")
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert f"resumed after {done} updates" in said and "2 process(es)" in said
    steps = [json.loads(line)["step"] for line in (work_dir / "scalars.jsonl").open()]
    assert steps == list(range(1, 41)) and slurm.log.read_text().count("scontrol") == 1


@pytest.mark.parametrize(
    ("number", "program", "code", "requeued"),
    [
        (None, "exit 2", 2, False),
        (signal.SIGUSR1, "trap 'exit 138' USR1; " + WAITING, 138, True),
        (signal.SIGUSR1, "trap 'exit 143' USR1; " + WAITING, 143, True),
        (signal.SIGUSR1, "trap 'exit 1' USR1; " + WAITING, 1, False),
        (signal.SIGUSR1, "trap 'exit 0' USR1; " + WAITING, 0, False),
        (signal.SIGTERM, "touch {ready}$SLURM_PROCID; sleep 2; exit 143", 143, False),
    ],
    ids=["mistake", "stopped", "stopped after another", "failed", "finished", "preempted"],
)
def test_what_is_queued_again(slurm, tmp_path, number, program, code, requeued):
    ready, python = tmp_path / "ready", tmp_path / "python"
    python.write_text(f"#!/bin/bash\n{program.format(ready=ready)}\n")
    python.chmod(0o755)
    job = slurm("train", "recipe.yaml", PYTHON=str(python))
    if number is not None:
        wait_for(lambda: all(Path(f"{ready}{rank}").exists() for rank in "01"), job)
        job.send_signal(number)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == code, said
    assert ("scontrol requeue" in slurm.log.read_text()) == requeued == ("queued again" in said)


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_a_script_without_arguments_says_what_it_wants(slurm, script):
    job = slurm(script)
    said, _ = job.communicate(timeout=20)
    assert job.returncode == 2 and said.startswith("error: no ") and said.count("\n") == 1
    assert not slurm.log.exists()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_the_scripts_ask_slurm_for(path):
    text = path.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    # The script alone is told of the time limit, queues the job again, and its log goes on.
    assert re.fullmatch(r"B:USR1@\d+", asked["signal"]) and "requeue" in asked and asked["open-mode"] == "append"
    before = text.split("set -euo pipefail")[0].splitlines()
    assert all(line.startswith("#") for line in before if line)  # Slurm reads directives up to the first command
    (tool,) = set(re.findall(r"tools/\w+\.py(?= \"\$@\")", text))
    assert (ROOT / tool).is_file()
