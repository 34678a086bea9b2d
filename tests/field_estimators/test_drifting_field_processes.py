"""Two gloo processes with half of the labels each find what one process finds with all."""

import multiprocessing

import torch
import torch.distributed as dist

from genflow.field_estimators import DriftingField
from genflow.field_estimators.base import FeatureSets

LABELS, PROCESSES = 4, 2


def features(rows):
    """Points of some labels, the generated ones with a gradient, and their weights."""
    random = torch.Generator().manual_seed(0)

    def points(count, positions, channels):
        # Labels differ in size, so that half of them have other means than all.
        return torch.randn(LABELS, count, positions, channels, generator=random) * torch.arange(1, 5).view(-1, 1, 1, 1)

    sets = {
        name: FeatureSets(points(5, *shape)[rows].requires_grad_(), points(4, *shape)[rows], points(3, *shape)[rows])
        for name, shape in {"map": (6, 3), "mean": (1, 3)}.items()
    }
    return sets, torch.rand(LABELS, 12, generator=random)[rows]


def results(rows):
    """Losses, statistics and gradients of some labels, at once and in parts of one label."""
    field = DriftingField()
    sets, weights = features(rows)
    drift = field(sets, weights)
    sum(losses.sum() for losses in drift.losses.values()).backward()
    surveyed = field.batch_statistics([lambda row=row: features(slice(row, row + 1)) for row in range(LABELS)[rows]])
    found = {}
    for name, statistics in drift.statistics.items():
        found |= {f"{name} loss": drift.losses[name].detach(), f"{name} gradient": sets[name].generated.grad}
        found |= {f"{name} scale": statistics.scale, f"{name} force": statistics.force}
        found |= {f"{name} surveyed scale": surveyed[name].scale, f"{name} surveyed force": surveyed[name].force}
    return found


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    share = LABELS // PROCESSES
    torch.save(results(slice(rank * share, (rank + 1) * share)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.set_forkserver_preload(["torch"])  # its import takes longer than the test
    torch.multiprocessing.start_processes(process, (tmp_path,), PROCESSES, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    for name, expected in results(slice(None)).items():
        divided = name.endswith(("loss", "gradient"))
        found = torch.cat([first[name], second[name]]) if divided else first[name]
        assert divided or torch.equal(first[name], second[name]), name
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
