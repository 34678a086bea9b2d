"""JiT's network against the published equations written out, what its output depends on, and where it starts."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional

from genflow.backbones.jit import JiT, JiTLayer
from genflow.condition import Condition
from genflow.config.sections import TrainSection
from genflow.engine.layers import apply_layer_settings

SIZE, PATCH, WIDTH, CLASSES, BATCH = 12, 4, 24, 5, 3
SMALL = {"depth": 4, "heads": 2, "channels": 2, "num_classes": CLASSES, "bottleneck": 6}
SMALL |= {"context_tokens": 3, "context_start": 1}


def make_backbone(broken=True, **options):
    """A backbone in float64; with ``broken`` nothing starts at zero any more."""
    torch.manual_seed(0)
    backbone = JiT(SIZE, PATCH, **{"width": WIDTH, **SMALL, **options}).double()
    if broken:
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def make_input(batch=BATCH, seed=1):
    return torch.randn(batch, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def condition_of(labels=(1, 4, CLASSES), time=(0.9, 0.4, 0.05), **others):
    times = torch.tensor(time, dtype=torch.float64)
    return Condition(labels=torch.tensor(labels), time=times, duration=times / 2, **others)


def moved_by(found, plain):
    """The least change of a sample."""
    return (found - plain).abs().amax(dim=(1, 2, 3)).min()


# The published equations


def normed(x, gain):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def turned(x, rows, columns):
    """Pairs (2k, 2k + 1) of (L, d) channels turned: the first half of the pairs by the row, the rest by the column."""
    pairs, out = x.shape[1] // 2, x.clone()
    for k in range(pairs):
        place, index = (rows, k) if k < pairs // 2 else (columns, k - pairs // 2)
        angle = place * 10_000 ** (-index / (pairs // 2))
        real, imaginary = x[:, 2 * k], x[:, 2 * k + 1]
        out[:, 2 * k] = real * angle.cos() - imaginary * angle.sin()
        out[:, 2 * k + 1] = real * angle.sin() + imaginary * angle.cos()
    return out


def one_image(state, image, time, label, heads, context_start):
    """The network of the paper on one (C, H, W) image at the paper's time, a patch and a head at a time."""
    side = SIZE // PATCH
    rows, columns = (axis.flatten().double() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    angles = time * 10_000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    clock = functional.silu(linear(state, "time_embedding.0", torch.cat([angles.cos(), angles.sin()])))
    cls = state["labels.weight"][label]
    condition = functional.silu(linear(state, "time_embedding.2", clock) + cls)

    x = []
    waves = 10_000 ** (-torch.arange(WIDTH // 4, dtype=torch.float64) / (WIDTH // 4))
    for row, column in zip(rows, columns, strict=True):
        top, left = int(row) * PATCH, int(column) * PATCH
        patch = image[:, top : top + PATCH, left : left + PATCH]
        narrow = (state["patch_embedding.0.weight"] * patch).sum((1, 2, 3))
        wide = state["patch_embedding.1.weight"][:, :, 0, 0] @ narrow + state["patch_embedding.1.bias"]
        x.append(wide + torch.cat([f(place * waves) for place in (column, row) for f in (torch.sin, torch.cos)]))
    x = torch.stack(x)

    prefix = 0
    for index in range(SMALL["depth"]):
        if index == context_start:
            x = torch.cat([cls + state["context_positions"], x])
            prefix = len(state["context_positions"])
        layer = f"layers.{index}"
        shift, scale, gate, shift_2, scale_2, gate_2 = linear(state, f"{layer}.modulation", condition).view(6, WIDTH)
        inner = normed(x, state[f"{layer}.attention_norm.weight"]) * (1 + scale) + shift
        q, k, v = linear(state, f"{layer}.attention.qkv", inner).view(-1, 3, heads, WIDTH // heads).unbind(1)
        still = torch.zeros(prefix, dtype=torch.float64)
        places = torch.cat([still, rows]), torch.cat([still, columns])
        joined = []
        for head in range(heads):
            query = turned(normed(q[:, head], state[f"{layer}.attention.query_norm.weight"]), *places)
            key = turned(normed(k[:, head], state[f"{layer}.attention.key_norm.weight"]), *places)
            weights = torch.exp(query @ key.T / math.sqrt(WIDTH // heads))
            joined.append(weights / weights.sum(1, keepdim=True) @ v[:, head])
        x = x + gate * linear(state, f"{layer}.attention.out", torch.cat(joined, dim=1))
        inner = normed(x, state[f"{layer}.feedforward_norm.weight"]) * (1 + scale_2) + shift_2
        wide = linear(state, f"{layer}.feedforward.gate_up", inner)
        assert wide.shape[1] == 2 * int(4 * WIDTH * 2 / 3)
        first, second = wide.chunk(2, dim=1)
        x = x + gate_2 * linear(state, f"{layer}.feedforward.down", first * torch.sigmoid(first) * second)

    shift, scale = linear(state, "modulation", condition).view(2, WIDTH)
    patches = linear(state, "output", normed(x[prefix:], state["norm.weight"]) * (1 + scale) + shift)
    out = torch.empty_like(image)
    for row, column, patch in zip(rows, columns, patches, strict=True):
        top, left = int(row) * PATCH, int(column) * PATCH
        out[:, top : top + PATCH, left : left + PATCH] = patch.view(PATCH, PATCH, -1).movedim(2, 0)
    return out


@pytest.mark.parametrize("context_start", [0, 1, 3])
def test_the_published_equations(context_start):
    backbone, x, condition = make_backbone(context_start=context_start), make_input(), condition_of()
    state = backbone.state_dict()
    found = backbone(x, condition)["main"]
    for image, output, label, time in zip(x, found, condition.labels, condition.time, strict=True):
        expected = one_image(state, image, 1 - time, label, SMALL["heads"], context_start)
        # Tables of positions and angles are float32.
        assert (output - expected).abs().max() < 1e-8 * expected.abs().max()


# What the output depends on


def test_the_clock_is_time_or_duration():
    for clock, other in (("time", "duration"), ("duration", "time")):
        backbone, x, condition = make_backbone(clock=clock), make_input(), condition_of()
        assert backbone.uses == ("labels", clock)
        plain = backbone(x, condition)["main"]
        assert torch.equal(backbone(x, replace(condition, **{other: None}))["main"], plain)
        assert moved_by(backbone(x, replace(condition, **{clock: getattr(condition, clock) + 0.05}))["main"], plain) > 0
        # In one step from noise to data both are 1.
        whole = replace(condition, time=torch.ones(BATCH), duration=torch.ones(BATCH))
        assert torch.equal(backbone(x, whole)["main"], make_backbone()(x, whole)["main"])


def test_labels():
    backbone, x = make_backbone(), make_input()
    null = backbone(x, condition_of([CLASSES] * 3))["main"]
    assert torch.equal(backbone(x, condition_of([-1] * 3))["main"], null)
    assert moved_by(backbone(x, condition_of([1] * 3))["main"], null) > 1e-3
    unconditional = make_backbone(num_classes=0)
    assert unconditional.uses == ("time",)
    unlabelled = replace(condition_of(), labels=None)
    assert moved_by(unconditional(x, unlabelled)["main"], 0) > 1e-3


def test_a_row_is_what_it_is_alone_and_again():
    backbone, x, condition = make_backbone(dropout=0.5).eval(), make_input(), condition_of()
    whole = backbone(x, condition)["main"]
    assert torch.equal(backbone(x, condition)["main"], whole)
    for row in range(BATCH):
        part = slice(row, row + 1)
        assert torch.allclose(backbone(x[part], condition.rows(part))["main"], whole[part], rtol=0, atol=1e-12)


def test_context_tokens_carry_the_class_and_every_learned_vector_counts():
    backbone, x = make_backbone(), make_input()
    for module in (*(layer.modulation for layer in backbone.layers), backbone.modulation):
        torch.nn.init.zeros_(module.weight)  # the other way of the class
    found = backbone(x, condition_of())["main"]
    assert moved_by(backbone(x, condition_of((2, 0, 3)))["main"], found) > 1e-3
    found.square().sum().backward()
    assert (backbone.context_positions.grad.abs().amax(dim=1) > 1e-6).all()
    without = make_backbone(context_tokens=0, context_start=9)
    assert without.context_positions is None
    assert moved_by(without(x, condition_of())["main"], 0) > 1e-3


def test_learned_positions_start_as_the_fixed_ones():
    fixed, learned = make_backbone(broken=False), make_backbone(broken=False, learned_positions=True)
    assert "positions" not in fixed.state_dict()
    assert torch.equal(learned.positions, fixed.positions) and learned.positions.requires_grad


def test_dropout_is_of_the_middle_half_and_of_training():
    backbone, x = make_backbone(depth=8, dropout=0.5), make_input()
    assert [layer.dropout for layer in backbone.layers] == [0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0]
    torch.manual_seed(1)
    dropped = backbone(x, condition_of())["main"]
    assert moved_by(backbone(x, condition_of())["main"], dropped) > 1e-6
    torch.manual_seed(1)
    assert torch.equal(backbone(x, condition_of())["main"], dropped)
    backbone.eval()
    assert torch.equal(backbone(x, condition_of())["main"], make_backbone(depth=8)(x, condition_of())["main"])


# Mistakes


def test_mistakes():
    backbone, x = make_backbone(), make_input()
    with pytest.raises(ValueError, match=r"JiT needs Condition\.time; given: labels"):
        backbone(x, Condition(labels=torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"JiT has no head 'auxiliary' \(known: main\)"):
        backbone(x, condition_of(), ("auxiliary",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 4"),
        ({"heads": 5}, "width 24 is not a multiple of heads 5"),
        ({"heads": 4}, "divisible by 4, found 6"),
        ({"context_start": 4}, "context_start 4 leaves no layer of 4 that sees context tokens"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        JiT(**{"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, **SMALL, **options})


# How it is computed


def test_bfloat16_autocast_gives_nearly_the_same_images():
    backbone, x = make_backbone().float(), make_input().float()
    plain = backbone(x, condition_of())["main"]
    streams = set()
    for layer in backbone.layers:
        layer.register_forward_hook(lambda _, inputs, out: streams.update((inputs[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(x, condition_of())["main"]
    assert streams == {torch.float32}  # the residual stream
    assert 1e-4 < (half - plain).norm() / plain.norm() < 0.05


def test_layers_are_single_graphs(monkeypatch):
    """Also where the sequence grows; the engine compiles them one by one."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    backbone, x = make_backbone(dropout=0.5), make_input()
    backbone.eval()
    plain = backbone(x, condition_of())["main"]
    assert list(backbone.repeated_layers()) == list(backbone.layers) and len(backbone.layers) == 4
    apply_layer_settings(backbone, TrainSection(max_iters=1, compile=True))
    assert torch.allclose(backbone(x, condition_of())["main"], plain, rtol=0, atol=1e-12)
    backbone.train()
    assert backbone(x, condition_of())["main"].isfinite().all()


# Where it starts


def test_starts_with_black_images_and_learns_the_output_map_first():
    backbone = make_backbone(broken=False)
    found = backbone(make_input(), condition_of())["main"]
    assert not found.any()
    (found - make_input(seed=2)).square().sum().backward()
    moved = {name for name, parameter in backbone.named_parameters() if parameter.grad.any()}
    assert moved == {"output.weight", "output.bias"}


def test_initial_values():
    torch.manual_seed(0)
    backbone = JiT(SIZE, PATCH, **{**SMALL, "width": 64, "bottleneck": 32, "num_classes": 100})

    def uniform(weight):
        bound = math.sqrt(6 / (len(weight) + weight[0].numel()))
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)

    def normal(values):
        assert values.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * values.numel()))

    for layer in backbone.layers:
        assert isinstance(layer, JiTLayer) and not layer.modulation.weight.any()
        for part in (layer.attention.qkv, layer.attention.out, layer.feedforward.gate_up, layer.feedforward.down):
            uniform(part.weight)
    for convolution in backbone.patch_embedding:
        uniform(convolution.weight)
    assert backbone.patch_embedding[0].bias is None
    for values in (backbone.time_embedding[0].weight, backbone.time_embedding[2].weight, backbone.labels.weight):
        normal(values)
    normal(backbone.context_positions)
    assert not backbone.modulation.weight.any() and not backbone.output.weight.any()
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
