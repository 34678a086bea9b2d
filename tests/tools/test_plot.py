"""tools/plot.py on a run of the tests, and what it refuses."""

import sys
from pathlib import Path

from PIL import Image
from started import run

PLOT = Path(__file__).parents[2] / "tools" / "plot.py"


def test_a_run_is_drawn(finished_run, tmp_path):
    out = tmp_path / "curves.png"
    done = run([sys.executable, PLOT, finished_run, "--out", out], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.width > 400


def test_mistakes_are_one_line(refused, here, finished_run):
    (here / "empty").mkdir()
    (here / "mine.png").write_bytes(b"mine")
    assert "empty/scalars.jsonl: missing" in refused("plot", "empty", "--out", "curves.png")
    assert "expected a name ending in .png" in refused("plot", finished_run, "--out", "curves.pdf")
    assert "is there already; --overwrite replaces it" in refused("plot", finished_run, "--out", "mine.png")
