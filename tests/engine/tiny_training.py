"""Training of a tiny flow on digits by ``tools/train.py``, with one process or several under torchrun."""

import subprocess
import sys
from pathlib import Path

from started import Group, Started

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "train_dataloader.batch_size=8",
    "default_hooks.samples.per_class=1",
    *(f"model.flow.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
)


def train_command(work_dir, *arguments, options=(), processes=1):
    """The command; ``options`` are changes of the recipe, beside those that make the flow tiny."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    recipe = ROOT / "recipes" / "itarflow_digits.yaml"
    tool = [ROOT / "tools" / "train.py", recipe, "--work-dir", work_dir, *arguments]
    return [str(word) for word in (*launch, *tool, "--cfg-options", *OPTIONS, *options)]


def start_training(work_dir, *arguments, processes=1, torchrun=False, **more):
    """Start it in a process group of its own, which can be killed whole; what it says is in ``stderr``.

    Several processes are forked, or started by torchrun.
    """
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    if torchrun:
        command = train_command(work_dir, *arguments, processes=processes, **more)
        return subprocess.Popen(command, process_group=0, **pipes)
    command = train_command(work_dir, *arguments, **more)
    return Started(command, process_group=0, **pipes) if processes == 1 else Group(command, processes, **pipes)
