"""Evaluations that several processes share, that are killed, or of which one process fails."""

import json
import sys
from pathlib import Path

import pytest
from made_images import Shades, evaluator
from started import run

from genflow.evaluation.base import Share

SHARED = """
import json, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch.distributed as dist
from made_images import Made, Shades, evaluator
from genflow.cli.parser import run_tool
from genflow.errors import UserError
from genflow.evaluation.base import Share

class Pictures(Made):
    read = 0

    def batch(self, indices, draws):
        self.read += len(indices)
        if {damaged} in indices:
            raise UserError("picture {damaged}: truncated")
        return super().batch(indices, draws)

def main():
    dist.init_process_group("gloo")
    rank, pictures = dist.get_rank(), Pictures()
    found = evaluator(reference=pictures, batch_size=7).evaluate(Shades(), share=Share(rank, dist.get_world_size()))
    Path(__file__).with_name(f"{{rank}}.json").write_text(json.dumps([pictures.read, found]))

run_tool(main)
"""


def launch(tmp_path, processes, damaged=-1):
    (tmp_path / "shared.py").write_text(SHARED.format(folder=str(Path(__file__).parent), damaged=damaged))
    return run([sys.executable, tmp_path / "shared.py"], processes, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(("processes", "read"), [(2, [32, 28]), (4, [18, 14, 14, 14])])
def test_processes_share_the_work_and_get_the_same(processes, read, tmp_path):
    """Real pictures are read by one process each."""
    assert launch(tmp_path, processes).returncode == 0
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    assert [count for count, _ in found] == read
    expected = evaluator().evaluate(Shades())
    for _, figures in found:
        assert figures == pytest.approx(expected, abs=1e-9)


def test_where_one_process_fails_all_end_and_it_says_why(tmp_path):
    done = launch(tmp_path, 2, damaged=10)
    assert done.returncode and "error: picture 10: truncated" in done.stderr


def test_a_killed_evaluation_goes_on(tmp_path):
    share = Share(partial=tmp_path / "partial.pt")
    expected = evaluator(batch_size=1).evaluate(Shades())
    made = []

    def stop(done, total):
        made.append(done)
        if done == 60 + 50:  # the real ones are looked at first
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(batch_size=1).evaluate(Shades(), progress=stop, share=share)
    found = evaluator(batch_size=1).evaluate(Shades(), progress=lambda done, total: made.append(done), share=share)
    assert made[110:] == [*range(1, 61), *range(60 + 41, 60 + 91)] and found == expected
    (tmp_path / "partial.pt").write_bytes(b"damaged")
    assert evaluator(batch_size=1).evaluate(Shades(), share=share) == expected
