"""Rates, clipping, AdamW and the weight average against Drifting's published optimizer."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genflow.config.sections import AverageSection, TrainSection
from genflow.draws import Draws
from genflow.engine.averages import WeightAverage
from genflow.engine.loop import AutocastOptimWrapper, UpdateLoop
from genflow.engine.schedule import WarmupLR
from genflow.engine.signals import StopRequest
from genflow.engine.watchdog import Watchdog
from genflow.methods.base import Method

ARCHIVE = np.load(Path(__file__).parents[1] / "golden" / "drifting" / "optimizer.npz", allow_pickle=False)
CONFIG = json.loads(str(ARCHIVE["config"]))
NAMES = ("w", "b", "e")


def schedule_of(optimizer, case):
    """The published schedule: from 1e-6 to the rate, then constant or down to a millionth of the rate."""
    return WarmupLR(
        optimizer,
        case["warmup_steps"],
        decay={"const": "constant", "cosine": "cosine"}[case["lr_schedule"]],
        minimum=1e-6 * case["learning_rate"],
        total_iters=case["total_steps"],
        start=1e-6,
    )


@pytest.mark.parametrize("name", CONFIG["lr"])
def test_rates(name):
    case = CONFIG["lr"][name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=case["learning_rate"])
    schedule = schedule_of(optimizer, case)
    for step, expected in zip(ARCHIVE[f"lr/{name}/steps"], ARCHIVE[f"lr/{name}/values"], strict=True):
        schedule.load_state_dict({"last_step": int(step)})
        # The stored ones are float32, whose steps are 1.2e-7.
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=0, abs=2e-7 * case["learning_rate"])


class Given(Method):
    """A method whose gradients are the stored ones, update by update."""

    def __init__(self):
        super().__init__()
        for name in NAMES:
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(ARCHIVE[f"traj/init/{name}"])))
        self.updates = 0

    def after_update(self):
        self.updates += 1

    def forward(self, labels, draws):
        gradients = {name: torch.from_numpy(ARCHIVE[f"traj/grads/{name}"][self.updates]) for name in NAMES}
        return {"loss": sum((gradients[name] * getattr(self, name)).sum() for name in NAMES)}


def test_updates():
    settings = CONFIG["traj"]
    model = Given()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["learning_rate"],
        betas=(settings["b1"], settings["b2"]),
        weight_decay=settings["weight_decay"],
    )
    wrapper = AutocastOptimWrapper(optimizer, "float32", settings["max_grad_norm"])
    schedule = schedule_of(optimizer, settings)
    weights = dict(model.named_parameters())
    average = WeightAverage(weights, AverageSection(decay=settings["ema_decay"]))
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, stop=StopRequest(), watchdog=Watchdog(600))
    loop = UpdateLoop(runner, torch.utils.data.DataLoader([0]), TrainSection(8), seed=0)
    norms = ARCHIVE["traj/grad_global_norm"]
    assert (norms > settings["max_grad_norm"]).any() and (norms < settings["max_grad_norm"]).any()
    for step, norm in enumerate(norms):
        values = loop.update({"labels": torch.zeros(1), "draws": Draws(0, torch.tensor([step]))})
        average.update(weights, images=step + 1, batch_size=1)
        schedule.step()
        assert values["grad_norm"] == pytest.approx(float(norm), rel=1e-6)
        for name in NAMES:
            for kind, found in (("params", weights[name].detach()), ("ema", average.values[name])):
                # Ours divides by the norm plus 1e-6; the vectors' own agreement is 4e-7.
                assert np.abs(found.numpy() - ARCHIVE[f"traj/{kind}/{name}"][step]).max() < 2e-6, (step, kind, name)
