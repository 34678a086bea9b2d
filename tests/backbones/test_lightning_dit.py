"""Drifting's generator: precisions, published sizes, where it starts, what its output depends on."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from genflow.analysis.flops import count_macs
from genflow.backbones import LightningDiT
from genflow.condition import Condition
from genflow.config.sections import TrainSection
from genflow.engine.layers import apply_layer_settings
from genflow.engine.muon import Muon

SIZE, PATCH, WIDTH, BATCH = 8, 4, 16, 4
SMALL = {
    "depth": 2,
    "heads": 2,
    "channels": 2,
    "num_classes": 3,
    "condition_width": 12,
    "context_tokens": 3,
    "style_codebooks": 2,
    "style_entries": 5,
}


def make_backbone(broken=True, **options):
    """A backbone in float64; with ``broken`` nothing starts at zero any more."""
    torch.manual_seed(0)
    backbone = LightningDiT(**{"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, **SMALL, **options}).double()
    if broken:
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def make_input(batch=BATCH, seed=1):
    return torch.randn(batch, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def condition_of(label=1, guidance=2.0, style=(0, 4), batch=BATCH):
    return Condition(
        labels=torch.full((batch,), label),
        guidance=torch.full((batch,), guidance, dtype=torch.float64),
        style=torch.tensor(style).repeat(batch, 1),
    )


def moved_by(found, plain):
    """The least change of a sample."""
    return (found - plain).abs().amax(dim=(1, 2, 3)).min()


# Precision


def dtypes_inside(backbone, monkeypatch):
    """The dtypes of modulations, attention and the residual stream under autocast."""
    found = {"modulation": set(), "attention": set(), "stream": set()}
    attend = functional.scaled_dot_product_attention

    def attending(q, k, v):
        out = attend(q, k, v)
        found["attention"] |= {q.dtype, k.dtype, v.dtype, out.dtype}
        return out

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attending)
    for module in (*backbone.layers, backbone):
        linear = module.modulation
        linear.register_forward_hook(lambda _, inputs, out: found["modulation"].update((inputs[0].dtype, out.dtype)))
    for layer in backbone.layers:
        layer.register_forward_hook(lambda _, inputs, out: found["stream"].update((inputs[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        backbone(make_input().float(), condition_of())["main"].square().sum().backward()
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_leaves_modulations_and_precise_attention_alone(precision, monkeypatch):
    backbone = make_backbone(attention_precision=precision).float()
    assert dtypes_inside(backbone, monkeypatch) == {
        "modulation": {torch.float32},
        "attention": {getattr(torch, precision)},
        "stream": {torch.bfloat16},
    }
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.any(), name


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_rounded_angles_are_part_of_the_function_in_any_precision():
    """In attention that looks closely at more than 256 positions."""
    sizes = {"image_size": 17, "patch_size": 1, "depth": 1, "width": 32}
    exact, rounded = (
        make_backbone(attention_precision=precision, **sizes).float() for precision in ("float32", "bfloat16")
    )
    x = torch.randn(BATCH, 3 + 17**2, 32, generator=torch.Generator().manual_seed(0))

    def attend(backbone):
        attention = backbone.layers[0].attention
        for norm in (attention.query_norm, attention.key_norm):
            torch.nn.init.constant_(norm.weight, 2.0)
        return attention(x, backbone.turns).detach()

    plain = attend(rounded)
    with torch.autocast("cpu", torch.bfloat16):
        half = attend(rounded)
    assert 1e-4 < relative(half, plain) < 0.03
    assert relative(attend(exact), plain) > 0.1
    assert relative(attend(rounded.double().float()), plain) < 1e-6


# Sizes


def of_size(**options):
    with torch.device("meta"):
        return LightningDiT(**options)


LATENT = {"image_size": 32, "patch_size": 2, "channels": 4}
PIXEL = {"image_size": 256, "patch_size": 16, "channels": 3}
BASE = {"width": 768, "depth": 12, "heads": 12}
LARGE = {"width": 1024, "depth": 24, "heads": 16}


@pytest.mark.parametrize(
    ("options", "parameters", "billions"),
    [
        (LATENT | BASE, 132_708_880, 24.5),
        (LATENT | LARGE, 462_909_456, 86.4),
        (PIXEL | BASE, 133_864_704, 24.8),
        (PIXEL | LARGE, 464_450_304, 86.8),
    ],
)
def test_published_sizes(options, parameters, billions):
    backbone = of_size(**options)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert backbone.uses == ("labels", "guidance", "style") and backbone.style_codes == (32, 64)
    inputs = (
        torch.zeros(1, *backbone.image_shape, device="meta"),
        torch.zeros(1, dtype=torch.int64, device="meta"),
        torch.ones(1, device="meta"),
        torch.zeros(1, 32, dtype=torch.int64, device="meta"),
    )
    count = count_macs(backbone, inputs, lambda x, *told: backbone(x, Condition(*told[:2], style=told[2]))["main"])
    assert count.total / 1e9 == pytest.approx(billions, abs=0.06)


def test_optimizers_of_matrices_are_told_what_is_none():
    backbone = make_backbone()
    groups = {group["matrices"]: group["params"] for group in Muon.parameter_groups(backbone)}
    shapes = {count: sorted(tuple(value.shape) for value in values) for count, values in groups.items()}
    assert shapes.keys() == {0, 1, 2, 3, 6}
    assert shapes[6] == [(6 * WIDTH, 12)] * 2 and shapes[3] == [(3 * WIDTH, WIDTH)] * 2
    assert shapes[2] == [(2 * WIDTH, 12), (128, WIDTH), (128, WIDTH)]
    tables = {id(backbone.positions), id(backbone.context_positions), id(backbone.labels.weight)}
    tables |= {id(table.weight) for table in backbone.style}
    assert tables <= {id(value) for value in groups[0]}
    assert not any(len(shape) == 2 for shape in shapes[0] if shape not in {(4, 16), (3, 16), (3, 12), (5, 12)})


# Where it starts


def test_output_starts_at_zero_and_its_map_learns_first():
    backbone = make_backbone(broken=False)
    sample = backbone(make_input(), condition_of())["main"]
    assert sample.shape == (BATCH, *backbone.image_shape) == (BATCH, 2, SIZE, SIZE)
    assert not sample.any()
    (sample - make_input(seed=2)).square().sum().backward()
    moved = {name for name, parameter in backbone.named_parameters() if parameter.grad.any()}
    assert moved == {"output.weight", "output.bias"}


def test_initial_values():
    """Spec 2.4, each within what a sample of its size allows."""
    torch.manual_seed(0)
    sizes = {"width": 64, "heads": 4, "condition_width": 48, "context_tokens": 16, "num_classes": 100}
    backbone = LightningDiT(16, 4, **{**SMALL, **sizes, "style_entries": 64})

    def normal(values):
        assert values.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * values.numel()))
        assert abs(values.mean().item()) < 4 * 0.02 / math.sqrt(values.numel())

    def uniform(matrix):
        bound = math.sqrt(6 / sum(matrix.shape))
        assert 0.95 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)

    for table in (backbone.labels, *backbone.style, backbone.guidance[0], backbone.guidance[2]):
        normal(table.weight)
    normal(backbone.context_positions)
    for layer in backbone.layers:
        attention, feedforward = layer.attention, layer.feedforward
        for matrix in (attention.qkv.weight, attention.out.weight, feedforward.down.weight):
            uniform(matrix)
        for matrix in feedforward.gate_up.weight.chunk(2):
            uniform(matrix)
    for linear in (backbone.patch_embedding, backbone.context_embedding):
        uniform(linear.weight)
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias") or "modulation" in name or name.startswith("output"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
    # Patch (2, 3) of the grid: sines and cosines of the column, then of the row.
    frequencies = torch.tensor([1e4 ** (-j / 16) for j in range(16)], dtype=torch.float64)
    expected = [trigonometric(place * frequencies) for place in (3, 2) for trigonometric in (torch.sin, torch.cos)]
    assert torch.allclose(backbone.positions[2 * 4 + 3].double(), torch.cat(expected), atol=1e-7)


# What the output depends on


def test_every_pixel_sees_every_pixel():
    backbone, x = make_backbone(), make_input(batch=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: backbone(v, condition_of(batch=1))["main"], x)
    assert (jacobian.abs() > 1e-9).all()


def test_patches_lie_where_they_came_from():
    """Without attention a patch of the output depends on its own patch of the input alone."""
    backbone, x = make_backbone(), make_input()
    for layer in backbone.layers:
        torch.nn.init.zeros_(layer.attention.out.weight)
    changed = x.clone()
    changed[:, :, :PATCH, PATCH:] += 1
    moved = (backbone(changed, condition_of())["main"] - backbone(x, condition_of())["main"]).abs() > 1e-9
    assert moved[:, :, :PATCH, PATCH:].all() and moved.sum() == moved[:, :, :PATCH, PATCH:].numel()


def test_rotation_and_positions_tell_equal_patches_apart():
    def distances(rotary, learned):
        backbone = make_backbone(rotary=rotary)
        if not learned:
            torch.nn.init.zeros_(backbone.positions)
        image = backbone(torch.ones(1, 2, SIZE, SIZE, dtype=torch.float64), condition_of(batch=1))["main"]
        return torch.pdist(image[..., ::PATCH, ::PATCH].flatten(2).mT.flatten(0, 1))

    assert distances(rotary=True, learned=False).min() > 1e-6
    assert distances(rotary=False, learned=True).min() > 1e-6
    assert distances(rotary=False, learned=False).max() < 1e-12


def test_output_depends_on_every_condition():
    backbone, x = make_backbone(), make_input()
    plain = backbone(x, condition_of())["main"]
    for other in ({"label": 2}, {"guidance": 1.0}, {"style": (1, 4)}, {"style": (0, 3)}, {"style": (4, 0)}):
        assert moved_by(backbone(x, condition_of(**other))["main"], plain) > 1e-4, other
    each = replace(condition_of(), guidance=torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    moved = (backbone(x, each)["main"] - plain).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert moved.tolist() == [False, False, True, True]


def test_conditions_enter_by_context_tokens_and_by_modulation():
    x = make_input()
    for context_tokens, modulated, matters in ((0, False, False), (0, True, True), (3, False, True)):
        backbone = make_backbone(context_tokens=context_tokens)
        if not modulated:
            for module in (*backbone.layers, backbone):
                torch.nn.init.zeros_(module.modulation.weight)
        change = moved_by(backbone(x, condition_of(label=2))["main"], backbone(x, condition_of())["main"])
        assert change > 1e-4 if matters else change == 0


@pytest.mark.parametrize(
    ("option", "field", "uses"),
    [
        ("num_classes", "labels", ("guidance", "style")),
        ("style_codebooks", "style", ("labels", "guidance")),
    ],
)
def test_what_it_does_not_have_is_not_looked_at(option, field, uses):
    backbone = make_backbone(**{option: 0})
    assert backbone.uses == uses
    without = replace(condition_of(), **{field: None})
    assert torch.equal(backbone(make_input(), without)["main"], backbone(make_input(), condition_of())["main"])


def test_switches_change_the_function():
    x = make_input()
    plain = make_backbone()(x, condition_of())["main"]
    for options in ({"norm": "layer"}, {"feedforward": "gelu"}, {"rotary": False}, {"qk_norm": False}):
        assert moved_by(make_backbone(**options)(x, condition_of())["main"], plain) > 1e-4, options


def test_mistakes():
    backbone, x = make_backbone(), make_input()
    with pytest.raises(ValueError, match=r"LightningDiT needs Condition\.style; given: labels, guidance"):
        backbone(x, replace(condition_of(), style=None))
    with pytest.raises(ValueError, match="LightningDiT has no head 'auxiliary'"):
        backbone(x, condition_of(), ("main", "auxiliary"))
    for label in (-1, 3):  # there is no "no class"
        with pytest.raises(IndexError):
            backbone(x, condition_of(label=label))
    with pytest.raises(IndexError):
        backbone(x, condition_of(style=(0, 5)))
    with pytest.raises(ValueError, match="zip"):
        backbone(x, condition_of(style=(0, 1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 4"),
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"width": 18}, "width divisible by 4, found 18"),
        ({"width": 20, "heads": 4}, "need an even head width, found 5"),
    ],
)
def test_sizes_that_do_not_divide(options, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(**options)


# Checkpointing


def checkpointed(backbone, checkpointing=True):
    apply_layer_settings(backbone, TrainSection(max_iters=1, checkpointing=checkpointing))
    return backbone


def gradients_of(backbone, autocast):
    x = make_input().to(backbone.output.weight.dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = backbone(x, condition_of())["main"].square().sum()
    inputs = {"x": x, **dict(backbone.named_parameters())}
    return dict(zip(inputs, torch.autograd.grad(loss, [*inputs.values()]), strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_changes_no_gradient(autocast):
    dtype = torch.float32 if autocast else torch.float64
    plain, again = (
        gradients_of(checkpointed(make_backbone().to(dtype), checkpointing), autocast)
        for checkpointing in (False, True)
    )
    for name, gradient in plain.items():
        assert gradient.any() and torch.equal(gradient, again[name]), name


def kept_for_backward(backbone):
    """Numbers that the graph keeps; weights count as often as they are used."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone(make_input(), condition_of())
    return sum(kept)


def test_checkpointing_keeps_less_and_only_while_training():
    plain, other = make_backbone(), checkpointed(make_backbone())
    assert kept_for_backward(other) < 0.5 * kept_for_backward(plain)
    assert kept_for_backward(other.eval()) == kept_for_backward(plain.eval())
