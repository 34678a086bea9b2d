"""Start of a process group on any device; the rest is mmengine.dist's."""

import os
import re
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from genflow.errors import UserError

Launcher = Literal["auto", "none", "pytorch", "slurm"]


def find_launcher(launcher: Launcher) -> Launcher:
    """The launcher that started this process; ``auto`` looks for the variables that torchrun and srun set."""
    if launcher != "auto":
        return launcher
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        return "pytorch"
    # A batch script has SLURM_PROCID too, but only srun makes steps of several tasks.
    return "slurm" if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else "none"


def launched_rank() -> int:
    """This process's rank as the launcher says it, before there is a process group."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def start_process_group(launcher: Launcher) -> None:
    """Join the process group that the launcher describes in the environment; nccl with a GPU, else gloo.

    mmengine's own start with ``pytorch`` calls ``torch.cuda.set_device`` whatever the backend, so the group
    is started here first, and mmengine then finds it.

    Raises:
        UserError: the launcher's environment variables are missing, or there are more processes than GPUs.
    """
    if launcher == "none" or dist.is_initialized():
        return
    if launcher == "slurm":
        _export_slurm()
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise UserError(
            f"--launcher {launcher}: {', '.join(missing)} not set; start with torchrun, "
            "e.g. torchrun --nproc-per-node 2 tools/train.py RECIPE"
        )
    os.environ.setdefault("MASTER_PORT", "29500")
    # The others wait while the main process writes what is trained, and for each other in evaluations.
    timeout = timedelta(hours=6)
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=timeout)
        return
    device = _own_gpu(launcher)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", timeout=timeout, device_id=device)


def _own_gpu(launcher: Launcher) -> torch.device:
    """This process's GPU; Slurm may show each task its own only."""
    gpus = torch.cuda.device_count()
    if launcher == "slurm" and gpus == 1:
        os.environ["LOCAL_RANK"] = "0"  # mmengine counts among the visible ones
    rank = int(os.environ["LOCAL_RANK"])
    if rank >= gpus:
        processes = os.environ.get("LOCAL_WORLD_SIZE", f"at least {rank + 1}")
        raise UserError(f"--launcher {launcher}: found {processes} processes on this machine, which has {gpus} GPU(s)")
    return torch.device("cuda", rank)


def _export_slurm() -> None:
    """Translate Slurm's variables into torch's; MASTER_ADDR must name the first node or be exported."""
    if "SLURM_PROCID" not in os.environ:
        raise UserError("--launcher slurm: SLURM_PROCID is not set; start with srun")
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", ""))
        os.environ["MASTER_ADDR"] = first_node(nodes)
    # Two jobs on one node must not meet.
    os.environ.setdefault("MASTER_PORT", str(29500 + int(os.environ.get("SLURM_JOB_ID", "0")) % 1000))


def first_node(nodes: str) -> str:
    """The first name of a Slurm node list such as ``gpu[03-05,9],cpu1``."""
    match = re.match(r"([^,\[]*)(?:\[([^\],-]*))?", nodes)
    return "".join(part for part in match.groups() if part)


def training_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
