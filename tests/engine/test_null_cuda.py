"""Recipes on a device that launches nothing: types and devices, waiting, launches, peak memory (tests/null_cuda)."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from null_cuda import build

ROOT = Path(__file__).parents[2]
#: GiB of a process of 8 at the recipe's own batch, and launches of an update; torch's own convolutions, which stand in
#: for cuDNN's, launch for every picture. drift_b2 takes 30 s here: 56 GiB (docs/imagenet.md).
CEILINGS = {
    "biflow_b2_imagenet": (72, 90_000),
    "pmf_b16_imagenet256": (72, 25_000),
    "meanflow_b2_imagenet": (72, 4_500),
    "drift_ablation_imagenet": (72, 270_000),
    "mae_latent_256": (72, 290_000),
}
DIGITS = ("pmf_digits", "biflow_digits", "drift_digits", "sinkhorn_digits")

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"no null device: {build.unavailable()}")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    library = build.build(tmp_path_factory.mktemp("null_cuda"))
    return build.environment(library, gibibytes=1000) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def updates(environment, recipes, *options, folder="recipes"):
    program = [sys.executable, "-W", "ignore", "tests/null_cuda/one_update.py"]
    paths = [f"{folder}/{name}.yaml" for name in recipes]
    command = [*program, *paths, *options]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    reports = {}
    for line in run.stdout.splitlines():
        if line.startswith("{"):
            report = json.loads(line)
            reports[Path(report["recipe"]).stem] = report
    assert set(reports) == set(recipes), run.stderr[-2000:]
    return reports


def check(report):
    assert "error" not in report, report["error"]
    assert report["synchronisations"] <= 1, report["waits"]
    assert set(report["waits"]) <= {report["figures_read"]}


@pytest.fixture(scope="module")
def of_imagenet(environment):
    # Not compiled, which takes minutes for each.
    settings = ("--no-sample", "--cfg-options", "train_cfg.compile=false")
    return updates(environment, CEILINGS, "--processes", "8", "--updates", "1", *settings)


@pytest.mark.parametrize("name", CEILINGS)
def test_imagenet_recipes_of_8_processes_fit_and_do_not_wait(of_imagenet, name):
    memory, launches = CEILINGS[name]
    report = of_imagenet[name]
    check(report)
    assert report["peak_gib"] < memory
    assert 0 < report["launches"] < launches


@pytest.mark.slow
def test_digits_do_not_wait(environment):
    for report in updates(environment, DIGITS).values():
        check(report)
        assert sum(report.get("sample_waits", {}).values()) <= 2, report["sample_waits"]


@pytest.mark.slow
def test_the_plain_derivative_of_mean_flow_keeps_its_types(environment):
    options = ("model.field.derivative=with_graph", "optim_wrapper.precision=bfloat16")
    report = updates(environment, ["pmf_digits"], "--no-sample", "--updates", "1", "--cfg-options", *options)
    assert "error" not in report["pmf_digits"], report["pmf_digits"]["error"]


def test_planted_faults_are_found(environment):
    reports = updates(environment, ("on_cpu", "not_moved", "asking"), "--import", "planted", folder="tests/null_cuda")
    for name in ("on_cpu", "not_moved"):
        assert "Expected all tensors to be on the same device" in reports[name]["error"]
        assert "planted.py" in reports[name]["error"]
    assert reports["asking"]["synchronisations"] > 1
    assert any(place.startswith("planted.py:") for place in reports["asking"]["waits"])


def test_the_exact_inverse_is_recorded_without_forbidden_calls(environment):
    command = [sys.executable, "-W", "ignore", "tests/null_cuda/captured.py"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    assert report["recorded"]["forbidden"] == report["replayed"]["forbidden"] == 0
    # A graph a block, and copies to and from its memory.
    assert report["blocks"] < report["replayed"]["launches"] < 20 < report["recorded"]["launches"]
    assert report["planted"] > 0


def train(environment, work_dir, *options, processes=1):
    """The training tool, one process or several as Slurm starts them, each of which sees the one device."""
    tool = ["tests/null_cuda/run_tool.py", "tools/train.py", "recipes/pmf_digits.yaml", "--work-dir", str(work_dir)]
    command = [sys.executable, "-W", "ignore", *tool, "--cfg-options", "evaluation=null", *options]
    group = {"SLURM_NTASKS": processes, "SLURM_STEP_NUM_TASKS": processes, "MASTER_ADDR": "localhost"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        group["MASTER_PORT"] = free.getsockname()[1]
    started = []
    for rank in range(processes):
        own = {name: str(value) for name, value in {**group, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}.items()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment | own, cwd=ROOT, **pipes))
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, said[0][-2000:] + said[-1][-2000:]
    assert "null device" in said[0] and (work_dir / "generator.safetensors").is_file()
    return [json.loads(line)["step"] for line in (work_dir / "scalars.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_training_tool_from_start_to_artifact(environment, tmp_path):
    assert train(environment, tmp_path / "run", "train_cfg.max_iters=2") == [1, 2]


@pytest.mark.slow
def test_two_processes_train_what_is_shared_out(environment, tmp_path):
    options = ("train_cfg.max_iters=2", "train_cfg.sharding={}")
    assert train(environment, tmp_path / "run", *options, processes=2) == [1, 2]
