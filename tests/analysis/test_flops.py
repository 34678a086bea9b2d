"""Counts against formulas worked out by hand, and the refusal to leave anything out."""

import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genflow.analysis import flops
from genflow.analysis.flops import count_generator, count_macs, register_handle
from genflow.analysis.operators import UncountedOperatorError, sizes
from genflow.backbones import GroupedTransformer
from genflow.codecs import SDVAE, Identity
from genflow.errors import UserError
from genflow.flow_teachers import TARFlow
from genflow.generators.flow import FlowGenerator
from genflow.generators.reverse import OnePassGenerator

IMPROVED = {
    "norm": "rms",
    "feedforward": "swiglu",
    "qk_norm": True,
    "positions": "rotary",
    "prefix_tokens": 3,
    "bound": 3.0,
}


def total(function, *inputs):
    return count_macs(nn.Identity(), inputs, function).total


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention(device, causal):
    query = torch.zeros(2, 3, 5, 8, device=device)
    length = 5 if causal else 7
    key, value = (torch.zeros(2, 3, length, width, device=device) for width in (8, 4))
    attention = functools.partial(F.scaled_dot_product_attention, is_causal=causal)
    assert total(attention, query, key, value) == 2 * 3 * 5 * length * (8 + 4)


def test_attention_with_grouped_queries():
    query, key = torch.zeros(2, 6, 5, 8), torch.zeros(2, 3, 7, 8)
    attention = functools.partial(F.scaled_dot_product_attention, enable_gqa=True)
    assert total(attention, query, key, key) == 2 * 6 * 5 * 7 * (8 + 8)


@pytest.mark.parametrize(
    ("layer", "per_element"),
    [
        (nn.RMSNorm(6), 3),
        (nn.RMSNorm(6, elementwise_affine=False), 2),
        (nn.LayerNorm(6), 5),
        (nn.LayerNorm(6, elementwise_affine=False), 4),
        (nn.GroupNorm(2, 4), 5),
    ],
)
def test_norms(layer, per_element):
    assert count_macs(layer, (torch.zeros(2, 4, 6),)).total == 2 * 4 * 6 * per_element


def test_linear():
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4, bias=False))
    count = count_macs(model, (torch.ones(2, 3, 6),))
    assert count.total == 2 * 3 * 6 * 5 + 2 * 3 * 5 * 4
    assert count.by_module == {"0": 180, "2": 120}
    assert count.by_operator == {"linear": 300}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 8, 8), 6 * 8 * 8 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), (2, 4, 9, 9), 2 * 6 * 4 * 4 * 2 * 9),
        (nn.Conv1d(4, 6, 2, dilation=2), (1, 4, 8), 6 * 6 * 4 * 2),
    ],
)
def test_convolutions(device, layer, shape, macs):
    assert count_macs(layer.to(device), (torch.zeros(shape, device=device),)).total == macs


def test_convolution_with_default_arguments_on_meta():
    image, weight = torch.zeros(1, 2, 5, 5, device="meta"), torch.zeros(3, 2, 3, 3, device="meta")
    assert total(F.conv2d, image, weight) == 3 * 3 * 3 * 2 * 9


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (torch.matmul, [(2, 3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (torch.matmul, [(3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (torch.matmul, [(3, 4), (4,)], 3 * 4),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (torch.addmm, [(5,), (3, 4), (4, 5)], 3 * 4 * 5),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (lambda x, y: torch.einsum("b h l d, b h s d -> b h l s", x, y), [(2, 3, 4, 5), (2, 3, 6, 5)], 720),
        (lambda x, y: torch.einsum("ij,jk", x, y), [(1001, 1003), (1003, 7)], 1001 * 1003 * 7),
    ],
)
def test_products(function, shapes, macs):
    assert total(function, *(torch.zeros(shape) for shape in shapes)) == macs


def test_einsum_that_cannot_be_counted():
    with pytest.raises(UncountedOperatorError, match="found 'a,a,a->'"):
        total(lambda x: torch.einsum("a,a,a->", x, x, x), torch.zeros(3))


def tarflow_macs(flow, layers, prefix, improved):
    """One forward pass: embedding, layers and output map on all tokens but the last, and the prefix."""
    channels, side, _ = flow.image_shape
    features = channels * flow.patch_size**2
    tokens = (side // flow.patch_size) ** 2
    width = flow.flow_blocks[0].embed.out_features
    length = tokens - 1 + prefix
    feedforward = 3 * width * (8 * width // 3) if improved else 8 * width**2
    norms = (4 * 3 if improved else 2 * 5) * width
    layer = length * (4 * width**2 + 2 * length * width + feedforward + norms)
    output = length * width * (2 * features + (3 if improved else 0))
    return flow.blocks * ((tokens - 1) * features * width + layers * layer + output)


@pytest.mark.parametrize("improved", [False, True])
def test_tarflow(improved):
    options = IMPROVED if improved else {}
    counts = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            flow = TARFlow(8, 3, 2, 32, blocks=2, layers=3, num_classes=5, head_width=16, **options)
        cost = count_generator(FlowGenerator(flow, Identity(8), noise_std=0.1))
        counts.append(cost)
        assert cost.generator_macs == tarflow_macs(flow, 3, 3 if improved else 0, improved)
        assert cost.by_component["network"] == cost.generator_macs
        assert cost.by_component["network.flow_blocks.0"] == cost.generator_macs // 2
        assert cost.generator_params == sum(parameter.numel() for parameter in flow.parameters())
        assert (cost.decoder_params, cost.decoder_macs, cost.nfe) == (0, 0, flow.inverse_evaluations + 1)
    assert counts[0] == counts[1]


def test_unconditional_tarflow():
    flow = TARFlow(4, 3, 2, 16, blocks=1, layers=1, head_width=8)
    cost = count_generator(FlowGenerator(flow, Identity(4), noise_std=0.0))
    assert cost.generator_macs == tarflow_macs(flow, 1, 0, False)


def test_one_pass_generator_is_the_same_on_meta():
    counts = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            backbone = GroupedTransformer(8, 3, 2, width=16, heads=2, groups=2, layers=1, num_classes=5)
        counts.append(count_generator(OnePassGenerator(backbone, Identity(8))))
    assert counts[0] == counts[1]
    assert counts[0].nfe == 1
    groups = [counts[0].by_component[f"network.group_layers.{index}"] for index in range(2)]
    assert groups[0] == groups[1] > 0


@pytest.mark.parametrize(
    ("function", "shape", "name"),
    [
        (lambda x: torch.linalg.solve(x, x), (3, 3), "aten::linalg_solve"),
        (torch.linalg.qr, (3, 3), "aten::linalg_qr"),
        (lambda x: torch.stft(x, 4, return_complex=True), (16,), "aten::stft"),
    ],
)
def test_unknown_operators_are_refused(function, shape, name):
    with pytest.raises(UncountedOperatorError) as caught:
        total(function, torch.randn(shape))
    message = str(caught.value)
    assert name in message
    assert f"register_handle('{name}', function)" in message
    assert "\n" not in message


class Inverse(nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x)


def test_refusal_names_the_innermost_modules():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Inverse()), Inverse())
    with pytest.raises(UserError, match=r"aten::linalg_inv in 1\.0, 2: register"):
        count_macs(model, (torch.rand(3, 3),))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x @ x


def test_foreign_functions_are_refused():
    with pytest.raises(UncountedOperatorError, match=r"prim::PythonOp\.Doubled"):
        total(Doubled.apply, torch.zeros(2, 2))


def test_registered_handles(monkeypatch):
    monkeypatch.setattr(flops, "_registered", {})

    def cubes(inputs, outputs):
        return sizes(inputs[0])[0] ** 3

    register_handle("aten::linalg_inv", cubes)
    assert count_macs(Inverse(), (torch.rand(3, 3),)).by_operator == {"linalg_inv": 27}
    register_handle("aten::linalg_inv", None)
    register_handle("aten::layer_norm", None)  # known already; this one comes first
    assert count_macs(nn.Sequential(nn.LayerNorm(3), Inverse()), (torch.rand(3, 3),)).total == 0


def test_modes_and_gradients_are_restored():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 3).eval())
    seen = []

    def watch(module, inputs, output):
        seen.append((module[1].training, output.requires_grad))

    model.register_forward_hook(watch)
    count_macs(model.to("meta"), (torch.zeros(2, 3, device="meta"),))
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.is_grad_enabled()


def test_no_warnings_reach_the_user(caplog, recwarn):
    count_macs(nn.Linear(3, 3), (torch.zeros(2, 3),), lambda x: x * int(x.shape[0]))
    assert not caplog.records
    assert not recwarn.list


def test_sd_vae_decoder():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        backbone = GroupedTransformer(32, 4, 2, width=16, heads=2, groups=1, layers=1, num_classes=5)
    cost = count_generator(OnePassGenerator(backbone, SDVAE()))
    assert cost.decoder_params == 49_490_199
    # Convolutions by hand, (side, in, out, kernel); the published decoder has about 310 GMACs.
    convolutions = [(32, 4, 4, 1), (32, 4, 512, 3), *[(32, 512, 512, 3)] * 10, *[(64, 512, 512, 3)] * 7]
    convolutions += [(128, 512, 512, 3), (128, 512, 256, 3), *[(128, 256, 256, 3)] * 5, (128, 512, 256, 1)]
    convolutions += [(256, 256, 256, 3), (256, 256, 128, 3), *[(256, 128, 128, 3)] * 5, (256, 256, 128, 1)]
    convolutions += [(256, 128, 3, 3)]
    macs = sum(side**2 * before * after * kernel**2 for side, before, after, kernel in convolutions)
    attention = 4 * 1024 * 512**2 + 2 * 1024**2 * 512
    norms = 5 * (32**2 * 512 * 11 + 64**2 * 512 * 6 + 128**2 * (512 + 256 * 5) + 256**2 * (256 + 128 * 6))
    assert cost.decoder_macs == macs + attention + norms
    assert cost.by_component["codec"] == cost.decoder_macs


def test_importing_stays_light():
    code = (
        "import sys, genflow.analysis.flops, genflow.codecs, genflow.backbones, genflow.flow_teachers;"
        "assert not {'fvcore', 'diffusers', 'timm', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
