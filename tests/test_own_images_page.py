"""docs/own_images.md: what it says about a folder of photographs, tried by its text."""

import re
import shlex
import sys
from pathlib import Path

import started

ROOT = Path(__file__).parents[1]


def blocks(kind):
    text = (ROOT / "docs" / "own_images.md").read_text(encoding="utf-8")
    text = text[text.index("## A folder of photographs") :]
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_photographs_from_the_text_to_a_picture(tmp_path, monkeypatch):
    """The commands in their order, of which the training that wants a GPU is left out and the other one is short."""
    monkeypatch.chdir(tmp_path)
    for name in ("GENFLOW_FOLDER", "GENFLOW_DINOV2"):
        monkeypatch.delenv(name, raising=False)
    for name in ("tools", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    (code,) = blocks("python")
    exec(compile(code.replace("range(500)", "range(20)"), "own_images.md", "exec"), {})
    Path("photos.yaml").write_text(blocks("yaml")[0])
    lines = [line.partition("  #")[0] for block in blocks("bash") for line in block.splitlines()]
    ran = [line for line in lines if "recipes/folder64" not in line]
    assert len(lines) - len(ran) == 1 and len(ran) == 5
    for line in ran:
        short = " --cfg-options train_cfg.max_iters=2" if "train.py" in line else ""
        command = [sys.executable, *shlex.split(line + short)[1:]]
        done = started.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert Path("photos.png").stat().st_size > 10_000 and Path("photos_beside.png").stat().st_size > 10_000
