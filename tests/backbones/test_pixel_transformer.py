"""pMF's transformer: its derivative along the path, what its output depends on, what is computed, where it starts."""

import itertools
import math
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from genflow.backbones.base import Backbone
from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.condition import Condition
from genflow.config.sections import TrainSection
from genflow.engine.layers import apply_layer_settings
from genflow.field_estimators import AverageVelocity
from genflow.layers import tangents
from genflow.layers.transformer import RMSNorm, TransformerLayer

SIZE, PATCH, WIDTH, CLASSES, BATCH = 8, 4, 16, 3, 4
BOTH = ("main", "auxiliary")
SMALL = {
    "depth": 3,
    "heads": 2,
    "channels": 2,
    "num_classes": CLASSES,
    "head_depth": 1,
    "auxiliary_depth": 2,
    "class_tokens": 2,
    "guidance_tokens": 1,
    "interval_tokens": 1,
    "time_tokens": 2,
}


def make_backbone(broken=True, training=None, **options):
    """A backbone in float64; with ``broken`` nothing starts at zero any more; ``training`` is for its layers."""
    torch.manual_seed(0)
    backbone = PixelTransformer(SIZE, PATCH, **{"width": WIDTH, **SMALL, **options}).double()
    if broken:
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    if training:
        apply_layer_settings(backbone, TrainSection(max_iters=1, **training))
    return backbone


def make_input(batch=BATCH, seed=1):
    return torch.randn(batch, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def condition_of(label=1, guidance=2.5, start=0.2, end=0.7, duration=0.4, time=0.8, batch=BATCH):
    numbers = torch.tensor([guidance, start, end, duration, time], dtype=torch.float64).repeat(batch, 1)
    return Condition(
        labels=torch.full((batch,), label),
        guidance=numbers[:, 0],
        interval=numbers[:, 1:3],
        duration=numbers[:, 3],
        time=numbers[:, 4],
    )


def moved_by(found, plain):
    """The least change of a sample."""
    return (found - plain).abs().amax(dim=(1, 2, 3)).min()


# Derivatives

CHOICES = [
    {"rotary": rotary, "bottleneck": bottleneck, "learned_positions": positions, "clock": clock}
    for rotary, bottleneck, positions, clock in itertools.product(
        ("patches", "sequence"), (None, 4), (True, False), ("duration", "time")
    )
]
CHOICES += [{"num_classes": 0}, {"time_tokens": 0}, {"guidance_tokens": 0, "interval_tokens": 0}, {"head_depth": 0}]


@pytest.mark.parametrize("options", CHOICES, ids=lambda options: ",".join(str(value) for value in options.values()))
def test_pairs_give_what_the_contract_says(options):
    backbone, x, direction = make_backbone(**options), make_input(), make_input(3, seed=2)
    outputs, moved = backbone.directional(x, condition_of(), direction, BOTH)
    expected, derivative = Backbone.directional(backbone, x, condition_of(), direction, BOTH)
    assert moved.shape == direction.shape and not moved.requires_grad
    assert (moved - derivative).abs().max() < 1e-10 * derivative.abs().max()
    for name in BOTH:
        assert outputs[name].requires_grad and torch.allclose(outputs[name], expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("clock", ["duration", "time"])
def test_derivative_is_that_of_small_steps(clock):
    backbone, x, direction = make_backbone(clock=clock), make_input(), make_input(seed=2)

    def shifted(by):
        condition = condition_of(duration=0.4 + by, time=0.8 + by)
        return backbone(x + by * direction, condition)["main"]

    _, moved = backbone.directional(x, condition_of(), direction)
    difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
    assert (moved - difference).abs().max() < 1e-7 * difference.abs().max()
    still = backbone.directional(x, condition_of(), torch.zeros_like(direction))[1]
    assert moved_by(still, 0) > 1e-3  # time moves, too


# What the output depends on


def test_every_pixel_sees_every_pixel():
    backbone, x = make_backbone(), make_input(batch=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: backbone(v, condition_of(batch=1))["main"], x)
    assert (jacobian.abs() > 1e-9).all()


def test_patches_lie_where_they_came_from():
    """Without attention a patch of the output depends on its own patch of the input alone."""
    backbone, x = make_backbone(), make_input()
    for layer in (*backbone.trunk, *backbone.main.layers):
        torch.nn.init.zeros_(layer.attention.out.weight)
    changed = x.clone()
    changed[:, :, :PATCH, PATCH:] += 1
    moved = (backbone(changed, condition_of())["main"] - backbone(x, condition_of())["main"]).abs() > 1e-9
    assert moved[:, :, :PATCH, PATCH:].all() and moved.sum() == moved[:, :, :PATCH, PATCH:].numel()


@pytest.mark.parametrize("rotary", ["patches", "sequence"])
def test_rotation_and_learned_positions_tell_equal_patches_apart(rotary):
    def distances(rotated, learned):
        backbone = make_backbone(rotary=rotary, learned_positions=learned)
        if not rotated:
            backbone.angles.zero_()
        image = backbone(torch.ones(1, 2, SIZE, SIZE, dtype=torch.float64), condition_of(batch=1))["main"]
        return torch.pdist(image[..., ::PATCH, ::PATCH].flatten(2).mT.flatten(0, 1))

    assert distances(rotated=True, learned=False).min() > 1e-6
    assert distances(rotated=False, learned=True).min() > 1e-6
    assert distances(rotated=False, learned=False).max() < 1e-12


OTHERS = {"label": 2, "guidance": 2.0, "start": 0.1, "end": 0.8, "duration": 0.3, "time": 0.7}


@pytest.mark.parametrize("clock", ["duration", "time"])
@pytest.mark.parametrize("head", BOTH)
def test_output_depends_on_every_condition_and_one_clock(head, clock):
    backbone, x = make_backbone(clock=clock), make_input()
    plain = backbone(x, condition_of(), (head,))[head]
    for name, value in OTHERS.items():
        other = backbone(x, condition_of(**{name: value}), (head,))[head]
        if name in {"duration", "time"} - {clock}:
            assert torch.equal(other, plain)
        else:
            assert moved_by(other, plain) > 1e-6, name
    assert moved_by(backbone(x, condition_of(start=0.7, end=0.2), (head,))[head], plain) > 1e-6
    null = backbone(x, condition_of(label=CLASSES), (head,))[head]
    assert moved_by(null, plain) > 1e-3
    assert torch.equal(backbone(x, condition_of(label=-1), (head,))[head], null)


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("class_tokens", ["label"]),
        ("guidance_tokens", ["guidance"]),
        ("interval_tokens", ["start", "end"]),
        ("time_tokens", ["duration", "time"]),
    ],
)
def test_a_condition_without_tokens_is_not_looked_at(option, names):
    backbone, x = make_backbone(**{option: 0}), make_input()
    plain = backbone(x, condition_of())["main"]
    for name in names:
        assert torch.equal(backbone(x, condition_of(**{name: OTHERS[name]}))["main"], plain)
    without = {"label": "labels", "guidance": "guidance", "start": "interval", "duration": "duration"}[names[0]]
    assert torch.equal(backbone(x, replace(condition_of(), **{without: None}))["main"], plain)


def test_every_learned_token_and_position_counts():
    backbone = make_backbone()
    backbone(make_input(), condition_of())["main"].square().sum().backward()
    for tokens in [*backbone.tokens.values(), backbone.positions]:
        assert (tokens.grad.abs().amax(dim=2) > 1e-6).all()
    assert [tokens.shape[1] for tokens in backbone.tokens.values()] == [2, 1, 1, 1, 2]
    assert backbone.positions.shape[1] == 7 + (SIZE // PATCH) ** 2


def test_unconditional_backbone_needs_no_labels():
    backbone, condition = make_backbone(num_classes=0), condition_of()
    assert backbone.uses == ("guidance", "interval", "duration")
    unlabelled = replace(condition, labels=None)
    assert torch.equal(backbone(make_input(), unlabelled)["main"], backbone(make_input(), condition)["main"])


def test_mistakes():
    backbone, x = make_backbone(auxiliary_depth=None), make_input()
    with pytest.raises(ValueError, match=r"PixelTransformer needs Condition.interval; given: labels, guidance"):
        backbone(x, replace(condition_of(), interval=None, duration=None, time=None))
    with pytest.raises(ValueError, match=r"PixelTransformer has no head 'auxiliary' \(known: main\)"):
        backbone(x, condition_of(), BOTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 4"),
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"width": 12}, "divisible by 4, found 6"),
        ({"width": 10, "rotary": "sequence"}, "need an even head width, found 5"),
        ({"head_depth": 4}, "head_depth 4 is more than depth 3"),
    ],
)
def test_sizes_that_do_not_divide(options, message):
    with pytest.raises(ValueError, match=message):
        PixelTransformer(**{"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, **SMALL, **options})


# What is computed


def count_calls(monkeypatch, owner, name):
    """Calls of a function from now on, by the number of rows of its first argument."""
    original, rows = getattr(owner, name), []

    def counting(first, *others):
        rows.append(len(first))
        return original(first, *others)

    monkeypatch.setattr(owner, name, counting)
    return rows


def test_heads_that_are_not_asked_for_are_not_computed():
    backbone, x, calls = make_backbone(), make_input(), []
    for name in BOTH:
        for layer in getattr(backbone, name).layers:
            layer.attention.qkv.register_forward_hook(lambda *_, name=name: calls.append(name))
    for parameter in backbone.auxiliary.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    assert backbone(x, condition_of())["main"].isfinite().all() and calls == ["main"]
    outputs, moved = backbone.directional(x, condition_of(), x)
    assert outputs.keys() == {"main"} and moved.isfinite().all() and calls == ["main"] * 2
    assert backbone(x, condition_of(), ("auxiliary",))["auxiliary"].isnan().all()
    assert calls == ["main"] * 2 + ["auxiliary"] * 2
    outputs, moved = backbone.directional(x, condition_of(), x, BOTH)
    assert outputs["main"].isfinite().all() and moved.isfinite().all()


def test_only_the_rows_that_move_have_a_tangent_and_only_in_the_main_head(monkeypatch):
    rows = count_calls(monkeypatch, tangents, "attention_tangent")
    backbone, x = make_backbone(), make_input()
    backbone.directional(x, condition_of(), make_input(3, seed=2), BOTH)
    assert rows == [3, 3, 3]  # the trunk's two layers and one of the main head
    backbone(x, condition_of(), BOTH)
    assert len(rows) == 3


def loss_and_gradients(backbone, count, dtype=torch.float64):
    """A loss of all heads with its gradients by name, and the derivative along ``count`` rows; None is forward."""
    backbone, x = backbone.to(dtype), make_input().to(dtype).requires_grad_()
    if count is None:
        outputs, moved = backbone(x, condition_of(), backbone.heads), None
    else:
        direction = make_input(count, seed=2).to(dtype)
        outputs, moved = backbone.directional(x, condition_of(), direction, backbone.heads)
    loss = outputs["main"].square().sum() + outputs.get("auxiliary", torch.zeros(())).pow(4).sum()
    inputs = {"x": x, **dict(backbone.named_parameters())}
    return loss.detach(), moved, dict(zip(inputs, torch.autograd.grad(loss, [*inputs.values()]), strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("count", [None, 3])
def test_checkpointing_changes_nothing_and_computes_tangents_once(count, autocast, monkeypatch):
    dtype = torch.float32 if autocast else torch.float64
    rows = count_calls(monkeypatch, tangents, "attention_tangent")
    results = []
    for checkpointing in (False, True):
        rows.clear()
        backbone = make_backbone(training={"checkpointing": checkpointing})
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append(loss_and_gradients(backbone, count, dtype))
        assert rows == ([] if count is None else [3, 3, 3])
    (loss, moved, gradients), (again, moved_again, gradients_again) = results
    assert loss == again and (count is None or torch.equal(moved, moved_again))
    for name, gradient in gradients.items():
        assert gradient.any() and torch.allclose(gradient, gradients_again[name], rtol=1e-12, atol=1e-12), name


def kept_for_backward(backbone, count):
    """Numbers that the graph keeps; weights count as often as they are used."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone.directional(make_input(), condition_of(), make_input(count, seed=2), BOTH)
    return sum(kept)


def test_checkpointing_keeps_less_and_only_while_training(monkeypatch):
    plain, checkpointed = make_backbone(), make_backbone(training={"checkpointing": True})
    assert kept_for_backward(checkpointed, 3) < 0.5 * kept_for_backward(plain, 3)
    assert kept_for_backward(checkpointed.eval(), 3) == kept_for_backward(plain.eval(), 3)
    calls = []
    monkeypatch.setattr(tangents, "checkpoint", lambda run, *inputs, **options: calls.append(run) or run(*inputs))
    for graph, count in ((False, 0), (True, 3)):
        with torch.set_grad_enabled(graph):
            checkpointed.train().directional(make_input(), condition_of(), make_input(3, seed=2))
        assert len(calls) == count


def check_compiled(count, **training):
    """The smallest network with a layer, compiled, against the same one as it is."""
    torch._dynamo.reset()
    sizes = {"width": 8, "heads": 1, "depth": 1, "auxiliary_depth": None}
    compiled = make_backbone(**sizes, training={"compile": True, **training})
    loss, moved, gradients = loss_and_gradients(make_backbone(**sizes), count, torch.float32)
    again, moved_again, found = loss_and_gradients(compiled, count, torch.float32)
    assert torch.allclose(again, loss, rtol=1e-5)
    if count is not None:
        assert (moved_again - moved).abs().max() < 1e-5 * moved.abs().max()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize(("count", "checkpointing"), [(None, False), (None, True), (3, True)])
def test_compiled_graphs_are_the_layers(count, checkpointing, monkeypatch):
    """The graphs that torch.compile takes forth and back, run without generated code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    check_compiled(count, checkpointing=checkpointing)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_code_is_the_layers():
    """Half a minute, with the tangent, which is the harder one."""
    check_compiled(3)


# Where it starts


def test_initial_values():
    """Standard deviations of docs/pmf.md, P11, each within what a sample of its size allows."""
    torch.manual_seed(0)
    backbone = PixelTransformer(8, 4, 64, **{**SMALL, "bottleneck": 32, "class_tokens": 8, "num_classes": 100})

    def normal(values, std):
        assert values.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * values.numel()))
        assert abs(values.mean().item()) < 4 * std / math.sqrt(values.numel())

    layers = [module for module in backbone.modules() if isinstance(module, TransformerLayer)]
    assert len(layers) == 5
    for layer in layers:
        for linear in (layer.attention.qkv, layer.attention.out, layer.feedforward.gate_up, layer.feedforward.down):
            normal(linear.weight, 0.32 / math.sqrt(linear.in_features))
        assert not layer.attention_gate.any() and not layer.feedforward_gate.any()
    for name, embedding in backbone.embeddings.items():
        if name == "labels":
            normal(embedding.weight, 1 / math.sqrt(64))
            continue
        for linear in (embedding[0], embedding[2]):
            normal(linear.weight, 1 / math.sqrt(linear.in_features))
            assert not linear.bias.any()
    for tokens in backbone.tokens.values():
        normal(tokens, 1 / math.sqrt(64))
    normal(backbone.positions, 0.02)
    first, second = backbone.patch_embedding
    for convolution, fan_in, fan_out in ((first, 2 * 4 * 4, 32), (second, 32, 64)):
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.95 * bound < convolution.weight.abs().max() <= bound
        assert convolution.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not convolution.bias.any()
    for norm in (module for module in backbone.modules() if isinstance(module, RMSNorm)):
        assert (norm.weight == 1).all()
    for head in (backbone.main, backbone.auxiliary):
        assert not head.output.weight.any() and not head.output.bias.any()


def test_starts_with_black_images_and_learns_the_output_maps_first():
    backbone, z = make_backbone(broken=False, bottleneck=4), make_input()
    t = torch.tensor([1.0, 0.5, 0.05, 0.01], dtype=torch.float64)
    velocities = AverageVelocity().velocity(backbone, z, t, t / 2, condition_of(), BOTH)
    expected = z / torch.tensor([1.0, 0.5, 0.05, 0.05]).view(-1, 1, 1, 1).double()
    for velocity in velocities.values():
        assert torch.allclose(velocity, expected, atol=1e-12)
    sum((velocity - make_input(seed=2)).square().sum() for velocity in velocities.values()).backward()
    moved = {name for name, parameter in backbone.named_parameters() if parameter.grad.any()}
    assert moved == {f"{head}.output.{part}" for head in BOTH for part in ("weight", "bias")}


def test_bfloat16_autocast_gives_nearly_the_same_outputs():
    backbone, x, direction = make_backbone().float(), make_input().float(), make_input(3, seed=2).float()
    outputs, moved = backbone.directional(x, condition_of(), direction, BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        half, half_moved = backbone.directional(x, condition_of(), direction, BOTH)
    for name in BOTH:
        assert 1e-4 < (half[name] - outputs[name]).norm() / outputs[name].norm() < 0.03
    assert 1e-4 < (half_moved - moved).norm() / moved.norm() < 0.03
