"""Out of memory in an update: one line that names what saves memory."""

import pytest
import torch

from genflow.engine.memory import out_of_memory
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError


def allocate_too_much(*arguments, **options):
    return torch.empty(2**50)


def raise_memory_error(*arguments, **options):
    raise MemoryError


@pytest.mark.parametrize("fail", [allocate_too_much, raise_memory_error])
def test_out_of_memory_names_batch_size_and_micro_batches(tiny_file, tmp_path, monkeypatch, fail):
    options = {
        "train_cfg.max_iters": 3,
        "train_cfg.micro_batches": 2,
        "default_hooks.checkpoint.interval": 1,
        "evaluation": None,
    }
    train(tiny_file, {**options, "train_cfg.max_iters": 1}, None, TrainOptions(tmp_path / "run"))
    message = (
        r"out of memory in an update; lower train_dataloader\.batch_size \(8\) or raise "
        r"train_cfg\.micro_batches \(2\): \S"
    )
    with monkeypatch.context() as patched, pytest.raises(UserError, match=message) as caught:
        patched.setattr("genflow.engine.loop.UpdateLoop.update_on", fail)
        train(tiny_file, options, None, TrainOptions(tmp_path / "run", "auto"))
    assert str(caught.value).isprintable()
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step_00000001.pt"]
    train(tiny_file, options, None, TrainOptions(tmp_path / "run", "auto"))


def test_other_errors_are_none_of_memory():
    short = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        OSError(12, "Cannot allocate memory"),
    ]
    others = [RuntimeError("The size of tensor a (3) must match"), ValueError("out of memory"), OSError(28, "full")]
    assert [out_of_memory(error) for error in (*short, *others)] == [True] * 4 + [False] * 3
