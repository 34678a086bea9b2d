"""The reverse model for vectors: what its outputs depend on, and how it meets a flow."""

import pytest
import torch

from genflow.backbones import GroupedMLP
from genflow.codecs import Identity
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.flow_teachers import CouplingFlow
from genflow.inverse_heads import HiddenAlignment
from genflow.losses import SquaredError
from genflow.methods import BiFlow

GROUPS, CLASSES, WIDTH = 3, 4, 16


def make_backbone(size=1, num_classes=CLASSES, broken=True, **options):
    """A backbone in float64; with ``broken`` nothing starts at zero any more."""
    torch.manual_seed(0)
    options = {"width": WIDTH, "groups": GROUPS, "layers": 2, "num_classes": num_classes, **options}
    backbone = GroupedMLP(size, 2, **options).double()
    if broken:
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def make_input(batch=5, size=1):
    return torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def condition_of(label=1, scale=1.5, batch=5):
    return Condition(labels=torch.full((batch,), label), guidance=torch.full((batch,), scale))


@pytest.mark.parametrize("size", [1, 3])
def test_one_token_through_every_group(size):
    backbone, x = make_backbone(size), make_input(size=size)
    assert (backbone.image_shape, backbone.patch_size, backbone.state_features) == ((2, size, size), size, WIDTH)
    state = backbone.embed(x)
    for index in reversed(range(GROUPS)):
        assert state.shape == (5, 1, WIDTH)
        state = backbone.group(index, state, condition_of())
    sample = backbone.finish(state, condition_of())
    assert torch.equal(backbone(x, condition_of())["main"], sample) and sample.shape == x.shape
    jacobian = torch.autograd.functional.jacobian(lambda v: backbone(v[None], condition_of(batch=1))["main"], x[0])
    assert (jacobian.abs() > 1e-9).all()


def test_samples_do_not_interact():
    backbone, x = make_backbone(), make_input()
    labels = torch.tensor([0, 1, 2, 3, CLASSES])
    condition = Condition(labels=labels, guidance=torch.arange(5.0))
    whole = backbone(x, condition)["main"]
    for row in range(5):
        alone = backbone(x[row : row + 1], condition_of(labels[row].item(), float(row), batch=1))["main"]
        assert (alone[0] - whole[row]).abs().max() < 1e-12


def test_groups_start_as_the_identity_and_the_output_at_zero():
    backbone, x = make_backbone(broken=False), make_input()
    state = backbone.embed(x)
    assert torch.equal(backbone.group(1, state, condition_of()), state)
    assert not backbone(x, condition_of())["main"].any()


def test_class_and_scale_enter_every_group_and_only_the_scale_the_finishing_stage():
    backbone = make_backbone()
    state = backbone.embed(make_input())
    for index in range(GROUPS):
        reference = backbone.group(index, state, condition_of())
        assert (backbone.group(index, state, condition_of(label=2)) - reference).abs().min() > 1e-9
        assert (backbone.group(index, state, condition_of(scale=0.0)) - reference).abs().min() > 1e-9
        null = backbone.group(index, state, condition_of(label=CLASSES))
        assert torch.equal(backbone.group(index, state, condition_of(label=-1)), null)
        assert (null - reference).abs().min() > 1e-9
    reference = backbone.finish(state, condition_of())
    assert torch.equal(backbone.finish(state, condition_of(label=2)), reference)
    assert (backbone.finish(state, condition_of(scale=0.0)) - reference).abs().min() > 1e-9


def test_conditions_that_are_needed():
    with pytest.raises(ValueError, match=r"GroupedMLP needs Condition\.guidance"):
        make_backbone()(make_input(), Condition(labels=torch.zeros(5, dtype=torch.int64)))
    unconditional = make_backbone(num_classes=0)
    sample = unconditional(make_input(), Condition())["main"]
    assert torch.equal(unconditional(make_input(), condition_of(0, 3.0))["main"], sample)


def test_without_denoising_layers_the_finish_is_a_linear_map():
    backbone = make_backbone(denoise_layers=0)
    state, other = torch.randn(2, 5, 1, WIDTH, dtype=torch.float64).unbind()
    finish = lambda h: backbone.finish(h, condition_of())  # noqa: E731
    assert (finish(0.3 * state + 0.7 * other) - 0.3 * finish(state) - 0.7 * finish(other)).abs().max() < 1e-12


@pytest.mark.slow
def test_learns_the_inverse_of_a_flow_by_hidden_alignment():
    torch.manual_seed(0)
    teacher = CouplingFlow(2, GROUPS, 16)
    for coupling in teacher.couplings:
        torch.nn.init.normal_(coupling.network[-1].weight, std=0.5)
    backbone = GroupedMLP(1, 2, 64, GROUPS, 1, denoise_layers=1)
    head = HiddenAlignment(backbone, SquaredError(), trajectory_norm="none")
    method = BiFlow(teacher, head, Identity(1, 2), SquaredError(), noise_std=0.0)
    optimizer = torch.optim.Adam(method.trained_parameters().values(), lr=3e-3)
    labels = torch.zeros(256, dtype=torch.int64)
    for step in range(300):
        draws = Draws(0, torch.arange(256 * step, 256 * (step + 1)))
        terms = method(0.5 * draws.normal("points", (2, 1, 1)), labels, draws)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        if step == 0:
            start = terms
    for name in ("reconstruction", *(f"align_{index}" for index in range(GROUPS))):
        assert terms[name] < 0.02 * start[name]
    z = Draws(9, torch.arange(256)).normal("noise", (2, 1, 1))
    z = 0.5 * z + teacher(torch.zeros(1, 2, 1, 1)).latent  # where the training's latents lie
    difference = method.generator(z, Condition()) - teacher.inverse(z)
    assert difference.square().mean() < 0.05 * teacher.inverse(z).square().mean()
