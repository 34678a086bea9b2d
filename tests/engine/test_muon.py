"""Muon and the Adam beside it against the published updates (tests/golden/README.md), and how weights are routed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.engine import muon
from genflow.engine.muon import Muon, orthogonalize
from genflow.layers.embeddings import ClassEmbedding
from genflow.layers.transformer import TransformerLayer

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "pmf" / "muon.npz", allow_pickle=False)
NAMES = [key.removeprefix("p0/") for key in GOLDEN.files if key.startswith("p0/")]
MATRICES = {"wide", "tall", "square", "late"}


def golden(key):
    """Matrices of the file are (in, out); ours are (out, in)."""
    value = torch.from_numpy(np.array(GOLDEN[key]))
    return value.t().contiguous() if value.dim() == 2 and key.split("/")[-1] in MATRICES else value


def close(found, expected, limit=1e-5):
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= limit, f"{error:.2e}"


def test_published_updates_and_states():
    parameters = {name: nn.Parameter(golden(f"p0/{name}")) for name in NAMES}
    optimizer = Muon(list(parameters.values()))
    for step in (1, 2, 3):
        before = {name: value.detach().clone() for name, value in parameters.items()}
        for name, value in parameters.items():
            value.grad = golden(f"g{step}/{name}")
        optimizer.step()
        for name, value in parameters.items():
            close(value.detach(), golden(f"p{step}/{name}"))
            # Differences of weights are rounded by what float32 resolves of a weight.
            error = (value.detach() - before[name] - golden(f"update{step}/{name}")).abs().max()
            assert error <= 1e-5 * golden(f"update{step}/{name}").abs().max() + 1.2e-7 * before[name].abs().max()
    for name, value in parameters.items():
        state = optimizer.state[value]
        if name in MATRICES:
            close(state["momentum"], golden(f"state3/momentum/{name}"))
            assert "square" not in state
        else:
            close(state["momentum"], golden(f"state3/adam_mu/{name}"))
            close(state["square"], golden(f"state3/adam_nu/{name}"))


def test_published_orthogonalization():
    matrix = torch.from_numpy(np.array(GOLDEN["ns/in"]))
    close(orthogonalize(matrix.unsqueeze(0))[0], torch.from_numpy(np.array(GOLDEN["ns/out"])))
    tall = nn.Parameter(torch.zeros(15, 7))
    tall.grad = matrix.t().contiguous()
    Muon([tall], lr=1.0).step()
    # The first direction is the gradient times a number, which the norm takes out; sqrt(15 / 7) is for the shape.
    close(tall.detach() / -((15 / 7) ** 0.5), torch.from_numpy(np.array(GOLDEN["ns/out_tall"])))


def test_a_zero_gradient_gives_a_zero_update_and_none_is_left_alone():
    matrix, other = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    matrix.grad = torch.zeros(3, 4)
    optimizer = Muon([matrix, other])
    optimizer.step()
    assert matrix.equal(torch.ones(3, 4)) and other.equal(torch.ones(3, 4))
    assert not optimizer.state[other]


def steps(parameters, groups, count=3, **options):
    optimizer = Muon(groups, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def test_stacked_matrices_are_separate():
    torch.manual_seed(0)
    joint = nn.Parameter(torch.randn(12, 6))
    parts = [nn.Parameter(part.clone()) for part in joint.detach().chunk(3)]
    together, apart = Muon([{"params": [joint], "matrices": 3}]), Muon(parts)
    whole = nn.Parameter(joint.detach().clone())
    as_one = Muon([whole])
    for _ in range(3):
        gradient = torch.randn(12, 6)
        joint.grad, whole.grad = gradient.clone(), gradient.clone()
        for part, own in zip(parts, gradient.chunk(3), strict=True):
            part.grad = own.clone()
        for optimizer in (together, apart, as_one):
            optimizer.step()
    close(joint.detach(), torch.cat([part.detach() for part in parts]), 1e-6)
    assert (joint - whole).abs().max() > 1e-4


def test_batches_equal_single_matrices(monkeypatch):
    def run():
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(*shape)) for shape in [(4, 8), (8, 4), (4, 8), (5, 5), (8, 4)]]
        steps(parameters, parameters)
        return parameters

    batched = run()
    monkeypatch.setattr(muon, "_STACK", 1)
    for ours, theirs in zip(batched, run(), strict=True):
        close(ours.detach(), theirs.detach(), 1e-6)


def test_bfloat16_orthogonalization_is_close_but_not_the_same():
    torch.manual_seed(0)
    exact, rough = nn.Parameter(torch.zeros(16, 32)), nn.Parameter(torch.zeros(16, 32))
    steps([exact], [exact], lr=1.0)
    steps([rough], [rough], lr=1.0, newton_schulz_precision="bfloat16")
    error = ((exact - rough).norm() / exact.norm()).item()
    assert 1e-4 < error < 0.05


def test_state_dict_goes_on_to_the_last_bit():
    def build():
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5))]

    whole, half = build(), build()
    steps(whole, whole, 3)
    generator = torch.Generator().manual_seed(1)
    optimizer = Muon(half)
    for index in range(3):
        if index == 2:
            fresh = Muon(half)
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        for parameter in half:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    assert all(ours.equal(theirs) for ours, theirs in zip(half, whole, strict=True))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = TransformerLayer(16, 2, qk_norm=True, gated=True)
        self.classes = ClassEmbedding(3, 16)
        self.words = nn.Embedding(3, 16)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_routing():
    model = Mixed()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["matrices"]: {names[id(parameter)] for parameter in group["params"]}
        for group in Muon.parameter_groups(model)
    }
    assert groups[3] == {"layer.attention.qkv.weight"}
    assert groups[2] == {"layer.feedforward.gate_up.weight"}
    assert groups[1] == {"layer.attention.out.weight", "layer.feedforward.down.weight"}
    assert {"classes.table", "words.weight", "convolution.weight", "layer.attention_gate"} <= groups[0]
    assert set(names.values()) - set.union(*groups.values()) == {"frozen.weight", "frozen.bias"}


def test_routing_of_the_published_network():
    with torch.device("meta"):
        network = PixelTransformer(256, 16, 768, 16, 12, auxiliary_depth=8, bottleneck=128)
    numbers = {
        bool(matrices): sum(
            parameter.numel()
            for group in Muon.parameter_groups(network)
            if bool(group["matrices"]) == bool(matrices)
            for parameter in group["params"]
        )
        for matrices in (0, 1)
    }
    assert numbers[True] / 1e6 == pytest.approx(174.19, abs=0.005)
    assert numbers[False] / 1e6 == pytest.approx(1.28, abs=0.005)
