"""Attention against its definition and its heads, graphs and counts of a layer, its size, and zero gates."""

import pytest
import torch

from genflow.analysis.flops import count_macs
from genflow.layers.embeddings import axial_rotation, rotate
from genflow.layers.transformer import Attention, CachedLayer, GeluFeedforward, SwiGluFeedforward, TransformerLayer

WIDTH, HEADS, LENGTH = 16, 2, 9


def sequence(seed=0):
    return torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attend_by_hand(attention, x, angles, causal):
    """softmax(q k / sqrt(d)) v per sample and head, with query/key norms and rotation."""
    outputs = torch.empty_like(x)
    for sample in range(len(x)):
        queries, keys, values = (x[sample] @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            query = rotate(attention.query_norm(queries[:, part]), angles)
            key = rotate(attention.key_norm(keys[:, part]), angles)
            logits = query @ key.T / (WIDTH // HEADS) ** 0.5
            if causal:
                logits = logits.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
            heads.append(logits.softmax(dim=-1) @ values[:, part])
        outputs[sample] = torch.cat(heads, dim=-1) @ attention.out.weight.T + attention.out.bias
    return outputs


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_definition(causal):
    torch.manual_seed(0)
    attention = Attention(WIDTH, HEADS, qk_norm=True).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x, angles = sequence(), axial_rotation(3, WIDTH // HEADS).double()
    found = attention(x, angles=angles, causal=causal)
    assert (found - attend_by_hand(attention, x, angles, causal)).abs().max() < 1e-12


def test_heads_are_runs_of_channels():
    """Queries of all heads come first, then keys, then values; heads lie side by side."""
    attention, width = Attention(WIDTH, HEADS), WIDTH // HEADS
    joint = torch.cat([sequence(seed) for seed in range(3)], dim=-1)
    for number, part in enumerate(attention.split(joint)):
        for head in range(HEADS):
            first = number * WIDTH + head * width
            assert part[:, head].equal(joint[..., first : first + width])
        assert attention.merge(part).equal(sequence(number))


def test_layer_compiles_to_one_graph():
    torch.manual_seed(0)
    layer, angles = TransformerLayer(WIDTH, HEADS, qk_norm=True).double(), axial_rotation(3, WIDTH // HEADS).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (layer, compiled):
        x = sequence().requires_grad_()
        value = run(x, angles=angles)
        gradients.append([value, *torch.autograd.grad(value.square().sum(), [x, *layer.parameters()])])
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted(device):
    attention = Attention(WIDTH, HEADS).to(device)
    count = count_macs(attention, (torch.zeros(1, LENGTH, WIDTH, device=device),))
    products = 2 * LENGTH**2 * WIDTH
    assert count.by_operator == {"linear": 4 * LENGTH * WIDTH**2, "scaled_dot_product_attention": products}
    assert count.by_module == {"qkv": 3 * LENGTH * WIDTH**2, "out": LENGTH * WIDTH**2}


def read_in_steps(cached, x, first):
    """The first positions together, then one after the other: (R, L, W) to (R, L, W)."""
    rows, width = len(x), x.shape[-1]
    parts = [cached(x[:, :first].flatten(0, 1), 0).view(rows, first, width)]
    parts += [cached(x[:, i], i).unsqueeze(1) for i in range(first, x.shape[1])]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("norm", "feedforward"), [("layer", "gelu"), ("rms", "swiglu"), ("rms", "gelu")])
@torch.no_grad()
def test_cached_layer_gives_what_the_causal_mask_gives(norm, feedforward, qk_norm, rotary):
    torch.manual_seed(0)
    layer = TransformerLayer(WIDTH, HEADS, norm, feedforward, qk_norm).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    angles = axial_rotation(3, WIDTH // HEADS).double() if rotary else None
    cached = CachedLayer(layer, 2, LENGTH, angles)
    for seed in range(2):  # nothing is left over from the first sequences
        x = sequence(seed)
        for first in (1, 3):
            assert (read_in_steps(cached, x, first) - layer(x, angles=angles, causal=True)).abs().max() < 1e-11
    # Many rows take another form of the product.
    many = sequence().repeat(20, 1, 1)
    found = read_in_steps(CachedLayer(layer, len(many), LENGTH, angles), many, 1)
    assert (found - layer(many, angles=angles, causal=True)).abs().max() < 1e-11


@torch.no_grad()
def test_rows_of_a_cached_layer_may_share_their_input():
    torch.manual_seed(0)
    layer = TransformerLayer(WIDTH, HEADS, qk_norm=True).double()
    apart, together = CachedLayer(layer, 4, LENGTH), CachedLayer(layer, 4, LENGTH)
    first, then = torch.cat([sequence(), sequence(1)])[:, 0], sequence()[:, 1]
    assert torch.equal(apart(first, 0), together(first, 0))
    assert torch.allclose(apart(then.repeat(2, 1), 1), together(then, 1), atol=1e-14)


@torch.no_grad()
def test_temperature_of_a_cached_layer_divides_the_logits():
    torch.manual_seed(0)
    layer = TransformerLayer(WIDTH, HEADS, qk_norm=True).double()
    temperature = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = read_in_steps(CachedLayer(layer, 2, LENGTH, temperature=temperature), sequence(), 1)
    for row, value in enumerate(temperature):
        layer.attention.query_norm.weight.fill_(1 / value)
        assert torch.allclose(found[row], layer(sequence(), causal=True)[row], atol=1e-12)


def test_layer_of_a_reverse_model_has_twelve_times_width_squared_weights():
    layer = TransformerLayer(768, 12, "rms", "swiglu", qk_norm=True, gated=True)
    matrices = [parameter for parameter in layer.parameters() if parameter.dim() == 2]
    assert sum(matrix.numel() for matrix in matrices) == 12 * 768**2
    vectors = {name for name, parameter in layer.named_parameters() if parameter.dim() == 1}
    assert not any(name.endswith("bias") for name in vectors)


def test_inner_widths():
    for width, inner in ((32, 96), (24, 64), (768, 2048), (1024, 2752)):  # docs/drifting.md, D2
        assert SwiGluFeedforward(width, multiple=32).down.in_features == inner
    assert SwiGluFeedforward(25, ratio=3.1).down.in_features == 51  # floor of 2/3 of 77
    assert GeluFeedforward(25).up.out_features == 100 and GeluFeedforward(25, ratio=3.1).up.out_features == 77


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu_is_its_definition(bias):
    torch.manual_seed(0)
    feedforward = SwiGluFeedforward(WIDTH, bias=bias).double()
    assert len(list(feedforward.parameters())) == (4 if bias else 2)
    gate, up = feedforward.gate_up(sequence()).chunk(2, dim=-1)
    assert torch.allclose(feedforward(sequence()), feedforward.down(gate / (1 + torch.exp(-gate)) * up), atol=1e-14)


def test_gated_layer_starts_as_the_identity():
    layer = TransformerLayer(WIDTH, HEADS, gated=True).double()
    assert torch.equal(layer(sequence()), sequence())
    torch.nn.init.ones_(layer.attention_gate)
    assert not torch.equal(layer(sequence()), sequence())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="not a multiple of heads"):
        Attention(16, 3)
