"""A full disk: one line that names file and disk, older checkpoints stay, and the run goes on once there is room."""

import json
import mmap
import subprocess
import tempfile
from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook

from genflow.engine.train import TrainOptions, train
from genflow.registry import HOOKS
from genflow.weights import read_weights

OPTIONS = {
    "train_cfg.max_iters": 40,
    "default_hooks.checkpoint": {"interval": 10, "max_keep_ckpts": 9},
    "custom_hooks": [{"type": "LateHook"}],
}
#: Files, and the checkpoints that are there when the disk is too full for them.
FILES = {
    "recipe.yaml": [],
    "scalars.jsonl": [10],
    "step_00000020.pt": [10],
    "step_00000040.png": [10, 20, 30, 40],
    "generator-slow.safetensors": [10, 20, 30, 40],
    "generator.safetensors": [10, 20, 30, 40],
    "metrics.json": [10, 20, 30, 40],
}


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)  # the log is open still


@pytest.fixture(scope="module")
def whole(finished_run, tmp_path_factory):
    """The run without a full disk."""
    work_dir = tmp_path_factory.mktemp("whole") / "run"
    return train(finished_run.parent / "tiny.yaml", {**OPTIONS, "custom_hooks": []}, options=TrainOptions(work_dir))


def fill(disk):
    with open(disk / "other", "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(whole, tiny_file, disk, monkeypatch, capfd, name):
    filling = name == "recipe.yaml"  # the others are written at the start too, and shall fail later

    class LateHook(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            nonlocal filling
            filling = filling or (batch_idx == 11 and not (disk / "other").exists())
            if filling and name == "scalars.jsonl":
                with open(run / name, "ab") as file:  # a line fits into a page that is there
                    file.write(b"\n" * (-file.tell() % mmap.PAGESIZE))
                fill(disk)

    def mkstemp(*, prefix, **options):
        made = tempfile.mkstemp(prefix=prefix, **options)
        if filling and prefix == f".{name}.":
            fill(disk)
        return made

    HOOKS.register_module(module=LateHook, force=True)
    run = disk / "run"
    with monkeypatch.context() as patched, pytest.raises(OSError, match="cannot be written") as caught:
        patched.setattr("genflow.weights.tempfile", SimpleNamespace(mkstemp=mkstemp))
        train(tiny_file, OPTIONS, options=TrainOptions(run))
    line = str(caught.value)
    assert line.startswith(str(run)) and line.isprintable()
    assert f"/{name}: cannot be written: No space left on device; disk {disk}: 0.0 of 4.0 MiB free" in line
    assert "Traceback" not in capfd.readouterr().err  # of the log, which cannot be written either
    assert not list(run.rglob(".*.partial"))
    assert [path.name for path in sorted(run.glob("checkpoints/*"))] == [f"step_{step:08d}.pt" for step in FILES[name]]

    (disk / "other").unlink()
    train(tiny_file, {**OPTIONS, "custom_hooks": []}, options=TrainOptions(run, "auto"))
    lines = [[line for line in (folder / "scalars.jsonl").open() if line != "\n"] for folder in (run, whole)]
    assert lines[0] == lines[1] and len(lines[1]) == 40
    for file in ("generator.safetensors", "generator-slow.safetensors", "generator-none.safetensors"):
        ours, expected = read_weights(run / file), read_weights(whole / file)
        assert all(ours[key].equal(value) for key, value in expected.items())
    assert "evaluation" in json.loads((run / "metrics.json").read_text())
