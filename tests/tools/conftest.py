"""Fixtures of the tools' tests: a tiny finished BiFlow run, an empty working folder, and tools that must refuse."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TEACHER = "prerequisites.teacher.recipe"
TINY = [
    "train_cfg.max_iters=1",
    "train_dataloader.batch_size=8",
    "default_hooks.samples.per_class=1",
    "evaluation.per_class=2",
    *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "layers=1", "groups=2")),
    f"{TEACHER}.train_cfg.max_iters=1",
    f"{TEACHER}.evaluation=null",
    f"{TEACHER}.default_hooks.samples.per_class=1",
    *(f"{TEACHER}.model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
]


@pytest.fixture(scope="session")
def biflow_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a BiFlow of width 16 on digits, its teacher's run beside it; read only.

    The weights are random, so that its images depend on all that they can depend on; trained ones start at zero.
    """
    from genflow.engine.train import TrainOptions, train
    from genflow.runs.folder import RunFolder
    from genflow.weights import read_weights, write_weights

    folder = tmp_path_factory.mktemp("biflow") / "biflow_digits"
    train(ROOT / "recipes" / "biflow_digits.yaml", TINY, options=TrainOptions(work_dir=folder))
    run, generator = RunFolder(folder), torch.Generator().manual_seed(0)
    for file in (run.weights_file(), run.prerequisite_file("teacher")):
        state = read_weights(file)
        write_weights(file, {name: 0.3 * torch.randn(old.shape, generator=generator) for name, old in state.items()})
    return folder


def save_random_vae(folder):
    """A small VAE of random weights that halves the sides, as diffusers saves it; returns it."""
    import diffusers

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    vae.save_pretrained(folder)
    return vae


def snapshot(folder):
    """Every file and folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GENFLOW_DATA", raising=False)
    return folder


@pytest.fixture
def refused(here, monkeypatch, capfd):
    """Runs a tool in this process; returns the one line with which it stops, having changed nothing."""

    def line(tool, *arguments):
        before = snapshot(here)
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
        errors = capfd.readouterr().err.strip("\n")  # rich may end its line when a tool before is collected
        assert stopped.value.code == 2, errors
        assert "Traceback" not in errors and errors.startswith("error: ")
        assert errors.isprintable(), "more than one line"
        assert snapshot(here) == before
        return errors

    return line
