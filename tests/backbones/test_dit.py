"""MeanFlow's transformer: where it starts, what its output depends on, and its derivative along the path."""

import pytest
import torch

from genflow.backbones import DiT, dit
from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.config.sections import TrainSection
from genflow.engine.layers import apply_layer_settings

SIZE, PATCH, WIDTH, CLASSES = 8, 4, 16, 3


def make_backbone(broken=True, num_classes=CLASSES):
    """A backbone in float64; with ``broken`` nothing starts at zero any more."""
    torch.manual_seed(0)
    backbone = DiT(SIZE, PATCH, WIDTH, depth=2, heads=2, channels=2, num_classes=num_classes).double()
    if broken:
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def make_input(batch=4, seed=1):
    return torch.randn(batch, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def condition_of(label=1, time=0.7, duration=0.4, batch=4):
    times = torch.tensor([time, duration], dtype=torch.float64).repeat(batch, 1)
    return Condition(labels=torch.full((batch,), label), time=times[:, 0], duration=times[:, 1])


def test_output_starts_at_zero_and_its_map_learns_first():
    backbone = make_backbone(broken=False)
    sample = backbone(make_input(), condition_of())["main"]
    assert sample.shape == (4, *backbone.image_shape) == (4, 2, SIZE, SIZE)
    assert not sample.any()
    (sample - make_input(seed=2)).square().sum().backward()
    moved = {name for name, parameter in backbone.named_parameters() if parameter.grad.any()}
    assert moved == {"output.weight", "output.bias"}


def test_layers_start_as_the_identity():
    backbone, x = make_backbone(broken=False), torch.randn(4, 4, WIDTH, dtype=torch.float64)
    condition = torch.randn(4, 1, WIDTH, dtype=torch.float64)
    assert torch.equal(backbone.layers[0](x, condition)[0], x)


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


def test_position_tells_equal_patches_apart():
    backbone = make_backbone()
    patches = backbone(torch.ones(1, 2, SIZE, SIZE, dtype=torch.float64), condition_of(batch=1))["main"]
    corners = patches[..., ::PATCH, ::PATCH].flatten(2).mT.flatten(0, 1)
    assert torch.pdist(corners).min() > 1e-3


def test_output_depends_on_class_time_and_duration():
    backbone, x = make_backbone(), make_input()
    plain = backbone(x, condition_of())["main"]
    for other in ({"label": 2}, {"label": CLASSES}, {"time": 0.6}, {"duration": 0.3}):
        assert (backbone(x, condition_of(**other))["main"] - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3, other
    null = backbone(x, condition_of(label=CLASSES))["main"]
    assert torch.equal(backbone(x, condition_of(label=-1))["main"], null)
    swapped = backbone(x, condition_of(time=0.4, duration=0.7))["main"]  # each has an embedding of its own
    assert (swapped - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_unconditional_backbone_needs_no_labels():
    backbone, condition = make_backbone(num_classes=0), condition_of()
    unlabelled = Condition(time=condition.time, duration=condition.duration)
    assert torch.equal(backbone(make_input(), unlabelled)["main"], backbone(make_input(), condition)["main"])


def test_mistakes():
    backbone, x = make_backbone(), make_input()
    with pytest.raises(ValueError, match=r"DiT needs Condition\.duration; given: labels, time"):
        backbone(x, Condition(labels=torch.zeros(4, dtype=torch.int64), time=torch.ones(4)))
    with pytest.raises(ValueError, match="DiT has no head 'auxiliary'"):
        backbone(x, condition_of(), ("main", "auxiliary"))
    with pytest.raises(ValueError, match="width divisible by 4, found 18"):
        DiT(SIZE, PATCH, 18, depth=1, heads=2)


@pytest.mark.parametrize("count", [4, 3])
def test_derivative_along_the_path(count):
    """Against a central difference, of all rows and of the first ones."""
    backbone, x, direction = make_backbone(), make_input(), make_input(count, seed=2)
    outputs, derivative = backbone.directional(x, condition_of(), direction)
    assert outputs["main"].requires_grad and not derivative.requires_grad
    assert torch.allclose(outputs["main"], backbone(x, condition_of())["main"], atol=1e-12)
    step = 1e-5

    def shifted(by):
        condition = condition_of(time=0.7 + by, duration=0.4 + by, batch=count)
        return backbone(x[:count] + by * direction, condition)["main"]

    difference = (shifted(step) - shifted(-step)) / (2 * step)
    assert (derivative - difference).abs().max() < 1e-7 * difference.abs().max()
    still = backbone.directional(x, condition_of(), torch.zeros_like(direction))[1]
    assert still.abs().amax(dim=(1, 2, 3)).min() > 1e-3  # times move, too


@pytest.mark.parametrize("count", [4, 3])
def test_carried_tangents_are_forward_mode_derivatives(count):
    backbone, x, direction = make_backbone(), make_input(), make_input(count, seed=2)
    outputs, moved = backbone.directional(x, condition_of(), direction)
    plain, expected = Backbone.directional(backbone, x, condition_of(), direction)
    assert torch.equal(outputs["main"], plain["main"])
    assert (moved - expected).abs().max() < 1e-10 * expected.abs().max()


def gradients_of(backbone):
    outputs, moved = backbone.train().directional(make_input(), condition_of(), make_input(3, seed=2))
    loss = outputs["main"].square().sum() + (outputs["main"][:3] * moved).sum()
    return moved, torch.autograd.grad(loss, list(backbone.parameters()))


def test_checkpointing_changes_nothing_and_computes_a_tangent_once(monkeypatch):
    moved, expected = gradients_of(make_backbone())
    checkpointed, tangents = make_backbone(), []
    rule = dit.attention_tangent
    monkeypatch.setattr(dit, "attention_tangent", lambda *inputs: tangents.append(1) or rule(*inputs))
    apply_layer_settings(checkpointed, TrainSection(max_iters=1, checkpointing=True))
    again, found = gradients_of(checkpointed)
    assert torch.equal(again, moved) and len(tangents) == len(checkpointed.layers)
    assert all(gradient.any() and torch.equal(gradient, own) for gradient, own in zip(found, expected, strict=True))


def test_a_layer_is_one_graph_with_and_without_tangent():
    torch._dynamo.reset()
    layer = make_backbone().layers[0]
    x, condition = (torch.randn(4, count, WIDTH, dtype=torch.float64) for count in (9, 1))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tangents in ({}, {"tangent": x[:3].sin(), "moving": condition[:3].cos()}):
        value, moved = layer(x, condition, **tangents)
        found, found_moved = compiled(x, condition, **tangents)
        assert torch.allclose(found, value, atol=1e-12)
        assert (moved is None and found_moved is None) or torch.allclose(found_moved, moved, atol=1e-12)


def test_under_autocast_the_tangent_is_close():
    backbone, x = make_backbone().float(), make_input().float()
    for parameter in backbone.parameters():
        parameter.data.mul_(1 / 3)  # with large weights bfloat16 is far off, whoever differentiates
    _, exact = backbone.directional(x, condition_of(), x[:3])
    with torch.autocast("cpu", torch.bfloat16):
        outputs, moved = backbone.directional(x, condition_of(), x[:3])
        assert torch.equal(outputs["main"], backbone(x, condition_of())["main"])
    assert (moved - exact).norm() < 0.02 * exact.norm()
