"""Muon and the Adam beside it against the published updates (tests/golden/README.md), and how weights are routed."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.config.recipe import dump_yaml
from genflow.engine import muon
from genflow.engine.muon import Muon, orthogonalize
from genflow.engine.train import TrainOptions, train
from genflow.layers.embeddings import ClassEmbedding
from genflow.layers.transformer import TransformerLayer
from genflow.weights import read_checkpoint

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
    # Updates do not depend on the weights, so from zero a weight after a step is the update, free of its rounding.
    moves = {name: nn.Parameter(torch.zeros_like(value)) for name, value in parameters.items()}
    optimizer, mover = Muon(list(parameters.values())), Muon(list(moves.values()))
    for step in (1, 2, 3):
        for name in NAMES:
            moves[name].data.zero_()
            parameters[name].grad = moves[name].grad = golden(f"g{step}/{name}")
        optimizer.step()
        mover.step()
        for name in NAMES:
            close(moves[name].detach(), golden(f"update{step}/{name}"))
            close(parameters[name].detach(), golden(f"p{step}/{name}"))
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


@pytest.mark.parametrize(("processes", "sharers"), [(1, 1), (2, 2), (8, 8), (12, 6), (64, 8), (11, 1)])
def test_neighbours_of_a_node_share(processes, sharers):
    assert muon._sharers(processes) == sharers


def test_a_zero_gradient_gives_a_zero_update_and_none_is_left_alone():
    matrix, other = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    matrix.grad = torch.zeros(3, 4)
    optimizer = Muon([matrix, other])
    optimizer.step()
    assert matrix.equal(torch.ones(3, 4)) and other.equal(torch.ones(3, 4))
    assert not optimizer.state[other]


@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_each_parameter_counts_the_updates_it_took_part_in(shape):
    early, late, alone = (nn.Parameter(torch.zeros(shape)) for _ in range(3))
    optimizer, other = Muon([early, late]), Muon([alone])
    for step in range(3):
        early.grad = torch.ones(shape)
        if step:
            late.grad = torch.linspace(-1, step, late.numel()).view(shape)
            alone.grad = late.grad.clone()
            other.step()
        optimizer.step()
    close(late.detach(), alone.detach(), 1e-6)


def test_moments_must_forget():
    for arguments in ({"momentum": 1.0}, {"betas": (0.9, 1.0)}):
        with pytest.raises(ValueError, match="below 1"):
            Muon([nn.Parameter(torch.zeros(2))], **arguments)


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
    matrices = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    exact, rough = (muon.orthogonalize(matrices, precision=precision) for precision in ("float32", "bfloat16"))
    error = ((exact - rough).norm() / exact.norm()).item()
    assert 1e-4 < error < 0.05


def test_a_cpu_multiplies_in_float32_which_is_fast_on_all_of_them():
    exact, rough = nn.Parameter(torch.zeros(16, 32)), nn.Parameter(torch.zeros(16, 32))
    torch.manual_seed(0)
    steps([exact], [exact], lr=1.0)
    torch.manual_seed(0)
    steps([rough], [rough], lr=1.0, newton_schulz_precision="bfloat16")
    assert torch.equal(exact, rough)


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


def test_recipe_trains_and_resumes_to_the_last_bit(tmp_path, tiny_recipe):
    tiny_recipe["train_cfg"]["max_iters"] = 4
    tiny_recipe["optim_wrapper"]["optimizer"] = {"type": "Muon", "lr": 1e-2}
    tiny_recipe["ema"] = {f"half_life_{images}": {"half_life": images, "ramp_up": None} for images in (10, 20, 40)}
    tiny_recipe["default_hooks"]["checkpoint"] = {"interval": 2}
    tiny_recipe["evaluation"] = None
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(tiny_recipe), encoding="utf-8")

    def checkpoint(run, step):
        return run / "checkpoints" / f"step_{step:08d}.pt"

    whole = train(path, options=TrainOptions(tmp_path / "whole"))
    resumed = train(path, options=TrainOptions(tmp_path / "resumed", str(checkpoint(whole, 2))))
    middle, ours, expected = (
        read_checkpoint(file) for file in (checkpoint(whole, 2), checkpoint(resumed, 4), checkpoint(whole, 4))
    )
    assert [group["matrices"] for group in expected["optimizer"]["param_groups"]] == [0, 1, 3]
    trained = "flow.flow_blocks.0.layers.0.attention.qkv.weight"
    values = [middle["model"][trained], expected["model"][trained]]
    values += [expected["averages"][name][trained] for name in tiny_recipe["ema"]]
    assert not any(one.equal(other) for one, other in itertools.combinations(values, 2))
    assert ours["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    for name in ("model", "averages"):
        torch.testing.assert_close(ours[name], expected[name], rtol=0, atol=0)
    torch.testing.assert_close(ours["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)
