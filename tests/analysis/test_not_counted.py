"""Networks of one's own that the meta device, a trace or a handle cannot take: counted with numbers, or one line."""

import json

import pytest
import torch
from torch import nn

from genflow import registry
from genflow.analysis import description
from genflow.analysis.description import (
    build_on_meta,
    cost_or_reason,
    count_recipe,
    describe,
    figures,
    graph_table,
    summarize,
)
from genflow.analysis.operators import NotCountedError
from genflow.backbones.base import Backbone
from genflow.config.graph import ComponentGraph
from genflow.engine.train import TrainOptions, train


class Own(Backbone):
    """8 x 8 digits through a 1 x 1 convolution, and whatever a subclass does."""

    uses = ("labels",)

    def __init__(self):
        super().__init__()
        self.image_shape, self.num_classes = (1, 8, 8), 10
        self.map = nn.Conv2d(1, 1, 1)
        self.own()

    def own(self):
        """Further layers."""

    def change(self, x):
        return x

    def forward(self, x, condition, heads=("main",)):
        return {"main": self.change(self.map(x))}


class Resampled(Own):
    def own(self):
        self.down = nn.Conv2d(1, 4, 2, stride=2)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4))
        self.up = nn.ConvTranspose2d(4, 1, 2, stride=2)

    def change(self, x):
        return self.up(self.inner(self.down(x)))


class ReadsANumber(Own):
    def change(self, x):
        return x / max(x.std().item(), 1.0)


class Branches(Own):
    def change(self, x):
        return self.map(x) if x.mean() > -1e9 else x


class MakesTensorsOnTheCPU(Own):
    def change(self, x):
        return x + torch.linspace(0, 1, 8)


class UsesNumPy(Own):
    def change(self, x):
        return x + torch.from_numpy(x.detach().cpu().numpy()).to(x)


class IsBuiltFromNumbers(Own):
    def own(self):
        self.rates = [rate.item() for rate in torch.linspace(0, 0.5, 3)]
        self.layers = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in self.rates)


class UnknownOperator(Own):
    def change(self, x):
        return torch.linalg.qr(x)[0]


class Fails(Own):
    def change(self, x):
        raise KeyError("two\nlines")


COUNTED = {
    Resampled: 64 + 4 * 16 * 4 + 4 * 16 * 4 * 9 + 2 * 4 * 16 + 4 * 16 * 4,
    ReadsANumber: 64,
    Branches: 2 * 64,
    MakesTensorsOnTheCPU: 64,
    UsesNumPy: 64,
    IsBuiltFromNumbers: 64,
}
NOT_COUNTED = {
    UnknownOperator: "do not know the multiply-adds of aten::linalg_qr",
    Fails: "cannot be counted: KeyError",
}


@pytest.fixture(autouse=True)
def registered():
    classes = [*COUNTED, *NOT_COUNTED]
    for cls in classes:
        registry.BACKBONES.register_module(module=cls)
    yield
    for cls in classes:
        for known in (registry.BACKBONES, registry.BACKBONES.parent):
            known._module_dict.pop(cls.__name__, None)


def recipe(cls):
    return {
        "model": {
            "type": "Drifting",
            "backbone": {"type": cls.__name__},
            "field": {"type": "DriftingField"},
            "codec": {"type": "Identity", "image_size": 8, "channels": 1},
            "labels_per_update": 4,
            "samples_per_label": 4,
            "positives": 4,
            "queue": {"per_class": 8, "overall": 40},
        },
        "train_dataloader": {"dataset": {"type": "Digits"}, "batch_size": 16},
        "train_cfg": {"max_iters": 2},
        "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 1e-3}},
        "default_hooks": {"samples": {"per_class": 1}},
    }


def graph_of(cls):
    return ComponentGraph.from_recipe(recipe(cls), "own.yaml")


@pytest.mark.parametrize("cls", COUNTED)
def test_counted_on_the_meta_device_or_with_numbers(cls):
    before = torch.get_rng_state()
    cost = count_recipe(graph_of(cls))
    assert (cost.generator_macs, cost.nfe) == (COUNTED[cls], 1)
    assert {row.path: row.macs for row in describe(graph_of(cls))}["model.backbone"] == COUNTED[cls]
    assert torch.equal(torch.get_rng_state(), before)  # weights with numbers are drawn from a generator of their own


@pytest.mark.parametrize("cls", NOT_COUNTED)
def test_not_counted_is_one_line(cls, capsys):
    graph = graph_of(cls)
    with pytest.raises(NotCountedError, match=f"^own.yaml: model: {NOT_COUNTED[cls]}") as caught:
        count_recipe(graph)
    line = str(caught.value)
    assert "\n" not in line and cost_or_reason(graph) == line
    assert summarize(line) == figures(line) == f"not counted: {line}"
    rows = {row.path: row.macs for row in describe(graph)}
    assert rows["model.backbone"] == line and rows["model.codec"] is None
    table = graph_table(describe(graph))
    assert "not counted" in list(table.columns[-1].cells)
    assert table.caption.startswith("model.backbone: not counted: own.yaml: model: ")


def test_a_large_network_is_not_run_with_numbers(monkeypatch):
    monkeypatch.setattr(description, "_COUNTED_WITH_NUMBERS", 1e-7)
    assert count_recipe(graph_of(Resampled)).generator_macs == COUNTED[Resampled]
    message = (
        r"^own.yaml: model: cannot be counted on the meta device \(RuntimeError.*item.*and has 0 M parameters, above"
    )
    with pytest.raises(NotCountedError, match=message):
        count_recipe(graph_of(ReadsANumber))


def test_constructors_without_a_fault_build_nothing_with_numbers():
    assert all(value.is_meta for value in build_on_meta(graph_of(Resampled)).parameters())
    assert not any(value.is_meta for value in build_on_meta(graph_of(IsBuiltFromNumbers)).parameters())


@pytest.mark.parametrize("cls", [UnknownOperator, IsBuiltFromNumbers, Resampled, ReadsANumber])
def test_training_does_not_depend_on_counting(cls, tmp_path, capsys):
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps(recipe(cls)), encoding="utf-8")
    folder = train(file, {}, None, TrainOptions(tmp_path / "run"))
    metrics = json.loads((folder / "metrics.json").read_text())
    (log,) = folder.rglob("*.log")
    if cls in COUNTED:
        assert metrics["generator"]["generator_macs"] == COUNTED[cls]
        return
    warning = f"not counted: {file}: model: {NOT_COUNTED[cls]}"
    assert f"warning: {warning}" in capsys.readouterr().out
    assert f"generator: {warning}" in log.read_text()
    assert metrics["generator"].startswith(warning) and metrics["updates"] == 2
