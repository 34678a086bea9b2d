"""``train_cfg.checkpointing`` and ``compile``: on every backbone and flow, with the same losses and gradients."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from genflow.condition import Condition
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import dump_yaml
from genflow.config.sections import TrainSection
from genflow.engine.layers import apply_layer_settings
from genflow.engine.preflight import check
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.feature_encoders.latent_mae import LatentMAE
from genflow.field_estimators import AverageVelocity
from genflow.registry import BACKBONES, FLOW_TEACHERS
from genflow.time_samplers.base import Times
from genflow.weights import read_weights

CLASSES, BATCH, SHAPE = 3, 4, (2, 8, 8)
SIZES = {"image_size": SHAPE[1], "channels": SHAPE[0], "width": 16, "num_classes": CLASSES}
TRANSFORMER = {**SIZES, "patch_size": 4, "heads": 2}
NETWORKS = {
    "DiT": {**TRANSFORMER, "depth": 2},
    "GroupedMLP": {**SIZES, "groups": 2, "layers": 1, "denoise_layers": 1},
    "GroupedTransformer": {**TRANSFORMER, "groups": 2, "layers": 1, "denoise_layers": 1},
    "JiT": {**TRANSFORMER, "depth": 2, "bottleneck": 4, "context_tokens": 2, "context_start": 1},
    "LightningDiT": {**TRANSFORMER, "depth": 2, "context_tokens": 1, "style_codebooks": 2, "style_entries": 4},
    "MLP": {**SIZES, "layers": 3},
    "PixelTransformer": {**TRANSFORMER, "depth": 2, "head_depth": 1, "auxiliary_depth": 1},
}
FLOWS = {
    "CouplingFlow": {"dimensions": 6, "blocks": 2, "width": 8, "layers": 1},
    "TARFlow": {**SIZES, "patch_size": 4, "blocks": 2, "layers": 2, "head_width": 8},
}
SETTINGS = [
    pytest.param({"checkpointing": True}, id="checkpointing"),
    pytest.param({"compile": True}, id="compile"),
    pytest.param({"checkpointing": True, "compile": True}, id="both"),
]


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """The graphs that torch.compile takes, run without generated code, whose compilation takes a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def own(registry):
    """The names of our own components; other tests may have registered theirs."""
    return {name for name, cls in registry.module_dict.items() if cls.__module__.startswith("genflow.")}


def build(registry, sizes, name, settings=None):
    """A network in float64 in which nothing is zero, twice the same."""
    torch.manual_seed(0)
    network = registry.get(name)(**sizes[name]).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3 if registry is BACKBONES else 0.1)
    if settings is not None:
        apply_layer_settings(network, TrainSection(max_iters=1, **settings))
    return network


def numbers(seed, shape=SHAPE):
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def condition():
    ones = torch.ones(BATCH, dtype=torch.float64)
    interval = torch.tensor([[0.2, 0.8]], dtype=torch.float64).expand(BATCH, 2)
    style = torch.arange(2 * BATCH).view(BATCH, 2) % 4
    return Condition(labels=torch.arange(BATCH) % CLASSES, guidance=2 * ones, interval=interval, style=style)


def gradients(network, loss):
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def check_same(run, plain, changed):
    """``run`` makes a loss and figures of a network."""
    expected, figures = run(plain)
    loss, others = run(changed)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert all(torch.allclose(*pair, rtol=1e-9, atol=1e-12) for pair in zip(figures, others, strict=True))
    found, moved = gradients(changed, loss), False
    for name, gradient in gradients(plain, expected).items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-10), name
        moved |= gradient.any().item()
    assert moved


def test_every_network_is_tried():
    assert own(BACKBONES) == NETWORKS.keys() and own(FLOW_TEACHERS) == FLOWS.keys()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_average_velocities_and_their_gradients_are_the_same(name, settings):
    """With the derivative along the path, which has a pass of its own for most backbones; one row does not move."""
    t, r = torch.tensor([[0.9, 0.5, 0.7, 0.3], [0.4, 0.5, 0.1, 0.2]], dtype=torch.float64)
    times = Times(t, r, t == r)

    def run(network):
        fields = AverageVelocity()(network, numbers(0), times, condition(), numbers(1), network.heads)
        auxiliary = 0.0 if fields.auxiliary is None else fields.auxiliary.pow(4).mean()
        return (fields.compound - numbers(2)).square().mean() + auxiliary, [fields.average, fields.compound]

    check_same(run, build(BACKBONES, NETWORKS, name), build(BACKBONES, NETWORKS, name, settings))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", FLOWS)
def test_likelihoods_and_their_gradients_are_the_same(name, settings):
    plain, changed = build(FLOW_TEACHERS, FLOWS, name), build(FLOW_TEACHERS, FLOWS, name, settings)
    labels = torch.arange(BATCH) % CLASSES if plain.num_classes else None

    def run(flow):
        trajectory = flow(numbers(0, flow.image_shape), labels)
        return trajectory.latent.square().mean() - trajectory.log_det.mean(), trajectory.states

    check_same(run, plain, changed)
    with torch.no_grad():
        samples = [flow.inverse(numbers(1, flow.image_shape), labels, 0.5) for flow in (plain, changed)]
    assert torch.allclose(*samples, rtol=1e-9)


@pytest.mark.parametrize(
    ("registry", "sizes", "name"),
    [(BACKBONES, NETWORKS, name) for name in NETWORKS] + [(FLOW_TEACHERS, FLOWS, name) for name in FLOWS],
    ids=[*NETWORKS, *FLOWS],
)
def test_settings_are_of_layers_and_leave_weights_alone(registry, sizes, name):
    settings = {"checkpointing": True, "compile": True}
    plain, changed = build(registry, sizes, name), build(registry, sizes, name, settings)
    assert changed.state_dict().keys() == plain.state_dict().keys()
    layers = list(changed.repeated_layers())
    assert len(layers) >= 2 and all("forward" in vars(layer) for layer in layers)
    apply_layer_settings(plain, TrainSection(max_iters=1))
    assert not any("forward" in vars(module) for module in plain.modules())


def test_networks_inside_a_method_are_found():
    inner = build(BACKBONES, NETWORKS, "MLP")
    apply_layer_settings(nn.ModuleList([nn.ModuleDict({"network": inner})]), TrainSection(1, checkpointing=True))
    assert all("forward" in vars(layer) for layer in inner.layers)
    assert not inner.compiled and build(BACKBONES, NETWORKS, "MLP", {"compile": True}).compiled


@pytest.mark.parametrize("setting", ["checkpointing", "compile"])
def test_encoders_too(setting):
    """One by one: to compute again ends early, within autocast's contexts, which torch's graphs do not leave then."""
    sizes = {"channels": 2, "image_size": 8, "width": 4, "depths": (1, 2), "num_classes": 2, "decoder": True}
    torch.manual_seed(0)
    plain = LatentMAE(**sizes)
    changed = copy.deepcopy(plain)
    apply_layer_settings(changed, TrainSection(1, **{setting: True}))
    assert [len(list(net.repeated_layers())) for net in (plain, changed)] == [1 + 3 + 2] * 2
    patches, results = plain.patches(numbers(1, (2, 8, 8)).float()), []
    for net in (plain.train(), changed.train()):
        filled, logits = net.reconstruct(patches)
        (filled.square().sum() + logits.sum()).backward()
        results.append([filled, logits, *(parameter.grad for parameter in net.parameters())])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(*results, strict=True))


def test_a_compiler_that_fails_is_one_line(monkeypatch, tmp_path, tiny_file):
    def backend(graph, inputs):
        raise RuntimeError("no C compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile.func, backend=backend))
    message = r"^train_cfg\.compile: torch\.compile failed: .*no C compiler.*; train_cfg\.compile=false trains without$"
    with pytest.raises(UserError, match=message):
        train(tiny_file, ["train_cfg.compile=true"], options=TrainOptions(tmp_path / "run"))


def test_training_with_both_gives_the_same_run(tmp_path, tiny_recipe):
    """Up to rounding; and the run opens as any other."""
    runs = []
    for name, settings in (("plain", {}), ("both", {"checkpointing": True, "compile": True})):
        recipe = copy.deepcopy(tiny_recipe)
        recipe["train_cfg"] |= settings
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_yaml({**recipe, "evaluation": None}))
        runs.append(train(path, options=TrainOptions(tmp_path / "runs" / name)))
    plain, both = ([json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()] for run in runs)
    for one, other in zip(plain, both, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    weights, found = (read_weights(run / "generator.safetensors") for run in runs)
    assert found.keys() == weights.keys()
    assert all(torch.allclose(found[name], value, rtol=1e-3, atol=1e-5) for name, value in weights.items())


def test_a_derivative_with_its_graph_is_refused_beside_checkpoints():
    recipe = Path(__file__).parents[2] / "recipes" / "pmf_digits.yaml"
    graph = ComponentGraph.load(recipe, ["train_cfg.checkpointing=true", "model.field.derivative=with_graph"])
    with pytest.raises(UserError, match=r"train_cfg.checkpointing: not with this AverageVelocity, which keeps a graph"):
        check(graph)
