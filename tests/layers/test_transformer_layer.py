"""Attention against its definition, the size of a layer, and zero gates."""

import pytest
import torch

from genflow.layers.embeddings import axial_rotation, rotate
from genflow.layers.transformer import Attention, KeyValueCache, TransformerLayer

WIDTH, HEADS, LENGTH = 16, 2, 9


def sequence(seed=0):
    return torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attend_by_hand(attention, x, angles, causal, temperature):
    """softmax(q k / sqrt(d)) v per sample and head, with query/key norms and rotation."""
    outputs = torch.empty_like(x)
    for sample in range(len(x)):
        queries, keys, values = (x[sample] @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            query = rotate(attention.query_norm(queries[:, part]), angles)
            key = rotate(attention.key_norm(keys[:, part]), angles)
            logits = query @ key.T / (WIDTH // HEADS) ** 0.5 / temperature[sample]
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
    temperature = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = attention(x, angles=angles, causal=causal, temperature=temperature)
    assert (found - attend_by_hand(attention, x, angles, causal, temperature)).abs().max() < 1e-12


def test_cache_gives_what_the_causal_mask_gives():
    torch.manual_seed(0)
    attention = Attention(WIDTH, HEADS, qk_norm=True).double()
    x, angles = sequence(), axial_rotation(3, WIDTH // HEADS).double()
    whole = attention(x, angles=angles, causal=True)
    cache = KeyValueCache(LENGTH)
    parts = [attention(x[:, :3], angles=angles[:3], causal=True, cache=cache)]
    parts += [attention(x[:, i : i + 1], angles=angles[i : i + 1], cache=cache) for i in range(3, LENGTH)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-12


def test_layer_of_a_reverse_model_has_twelve_times_width_squared_weights():
    layer = TransformerLayer(768, 12, "rms", "swiglu", qk_norm=True, gated=True)
    matrices = [parameter for parameter in layer.parameters() if parameter.dim() == 2]
    assert sum(matrix.numel() for matrix in matrices) == 12 * 768**2
    vectors = {name for name, parameter in layer.named_parameters() if parameter.dim() == 1}
    assert not any(name.endswith("bias") for name in vectors)


def test_gated_layer_starts_as_the_identity():
    layer = TransformerLayer(WIDTH, HEADS, gated=True).double()
    assert torch.equal(layer(sequence()), sequence())
    torch.nn.init.ones_(layer.attention_gate)
    assert not torch.equal(layer(sequence()), sequence())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="not a multiple of heads"):
        Attention(16, 3)
