"""The learning-rate schedule against the published TARFlow schedule."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper

from genflow.config.graph import ComponentGraph
from genflow.engine.preflight import check
from genflow.engine.schedule import WarmupLR
from genflow.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "tarflow" / "lr_schedule.npz"


def rates(warmup, total, minimum, rate, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    wrapper = OptimWrapper(optimizer)
    schedule = WarmupLR(wrapper, warmup, minimum=minimum, total_iters=total, **options)
    used = []
    for _ in range(total):
        wrapper.step()
        used.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return used, optimizer.param_groups[0]["lr"]


def test_matches_published_schedule():
    data = np.load(GOLDEN, allow_pickle=False)
    for index, case in enumerate(json.loads(str(data["config"]))):
        used, last = rates(case["warmup_steps"], case["total_steps"], case["min_lr"], case["max_lr"])
        np.testing.assert_allclose(used, data[f"case{index}/lr_used_by_update"], rtol=1e-12)
        assert last == pytest.approx(data[f"case{index}/lr_after_step"][-1], rel=1e-12)


def test_constant_after_warmup():
    used, last = rates(4, 10, 0.0, 1.0, decay="constant")
    assert used == [0.0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    assert last == 1.0


def test_cosine_needs_a_length():
    optimizer = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    with pytest.raises(ValueError, match="total_iters"):
        WarmupLR(optimizer, 3)


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("{type: OneCycleLR, eta_max: 0.1, total_steps: 2}", "param_scheduler.0: fails in update 3 of 6: "),
        ("{type: OneCycleLR, eta_max: 0.1, total_steps: 300}", "param_scheduler.0: fails in update 1998 of 2000: "),
        ("{type: StepLR, step_size: 1, by_epoch: true}", "param_scheduler.0.by_epoch: found true, expected false"),
    ],
)
def test_schedules_that_would_stop_training_are_refused_before_it(tiny_file, schedule, problem):
    updates = 2000 if "300" in schedule else 6
    graph = ComponentGraph.load(tiny_file, [f"param_scheduler=[{schedule}]", f"train_cfg.max_iters={updates}"])
    with pytest.raises(UserError) as caught:
        check(graph)
    assert str(caught.value).startswith(f"{tiny_file}: {problem}")
