"""Naive and hidden distillation: what they supervise and what flows between groups (docs/biflow.md, B13)."""

import pytest
import torch

from genflow.backbones import GroupedTransformer
from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.flow_teachers.base import Trajectory
from genflow.guidance import ClassifierFreeGuidance, TrainingTimeCFG
from genflow.inverse_heads import HiddenAlignment, HiddenDistillation, NaiveDistillation
from genflow.layers.patches import patchify
from genflow.losses import SquaredError

SIZE, CHANNELS, PATCH, CLASSES, GROUPS, WIDTH = 4, 2, 2, 3, 3, 16
FEATURES = CHANNELS * PATCH**2


def make_backbone(states="hidden", denoise_layers=1):
    torch.manual_seed(0)
    backbone = GroupedTransformer(
        SIZE, CHANNELS, PATCH, WIDTH, 2, GROUPS, 1, denoise_layers, CLASSES, 3, 2, states=states
    )
    for name, parameter in backbone.named_parameters():
        if parameter.dim() == 1 or name == "output.weight":
            torch.nn.init.normal_(parameter, std=0.5)
    return backbone.double()


def random_images(batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)


def condition_of(*labels, scale=2.0):
    return Condition(labels=torch.tensor(labels), guidance=torch.full((len(labels),), scale, dtype=torch.float64))


def trajectory():
    states = [random_images(seed=index) for index in range(GROUPS + 1)]
    return Trajectory(states, [torch.zeros(2)] * GROUPS, torch.zeros(()))


class Shift(Backbone):
    """A backbone without groups: the image plus label and scale."""

    uses = ("labels", "guidance")
    image_shape, num_classes = (CHANNELS, SIZE, SIZE), CLASSES

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, condition, heads=("main",)):
        return {"main": self.gain * x + (condition.labels + condition.guidance).view(-1, 1, 1, 1)}


def test_naive_distillation_has_no_terms_and_no_parameters_of_its_own():
    head = NaiveDistillation(make_backbone())
    output = head(random_images(), condition_of(0, 1))
    assert output.hidden == [] and head.supervise([], trajectory()) == {}
    assert len(list(head.parameters())) == len(list(head.backbone.parameters()))
    assert torch.equal(output.sample, head.backbone(random_images(), condition_of(0, 1))["main"])


def test_naive_distillation_takes_any_backbone_and_recovers_its_sample():
    head, z = NaiveDistillation(Shift()), random_images()
    sample = head(z, condition_of(1, CLASSES), TrainingTimeCFG()).sample
    guided, null = z + 1 + 2, z + CLASSES + 2
    assert torch.allclose(sample[0], ((guided + 2 * null) / 3)[0], atol=1e-12)
    assert torch.allclose(sample[1], null[1], atol=1e-12)  # no class: its own output at every scale
    sample.sum().backward()
    # The null branch carries no gradient: a third of the first row's, all of the second's.
    assert head.backbone.gain.grad.item() == pytest.approx((z[0].sum() / 3 + z[1].sum()).item())


def test_hidden_distillation_hands_on_nothing_but_the_projection():
    """What the next group gets has D numbers per token, the same that the loss sees."""
    head = HiddenDistillation(make_backbone("data"), SquaredError(), trajectory_norm="none")
    backbone, z, condition = head.backbone, random_images(), condition_of(0, 1)
    entering = []
    for index, entry in enumerate(backbone.entries):
        entry.register_forward_pre_hook(lambda _, inputs, index=index: entering.append((index, inputs[0])))
    output = head(z, condition)
    assert [index for index, _ in entering] == [2, 1, 0, GROUPS]
    assert all(state.shape == (2, SIZE, FEATURES) for _, state in entering)
    assert torch.equal(entering[0][1], patchify(z, PATCH))
    for position, index in enumerate((2, 1, 0)):
        assert torch.equal(entering[position + 1][1], output.hidden[index])
        assert torch.equal(patchify(head.project(output.hidden)[index], PATCH), output.hidden[index])
    # Whatever of a group's hidden state the projection does not see changes nothing.
    hidden = torch.randn(2, SIZE, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = backbone.exits[0].weight
    unseen = torch.linalg.svd(weight)[2][FEATURES:]
    assert unseen.shape == (WIDTH - FEATURES, WIDTH)
    assert torch.allclose(backbone.exits[0](hidden + 5 * unseen[0]), backbone.exits[0](hidden), atol=1e-12)


def test_hidden_distillation_matches_the_states_themselves():
    head = HiddenDistillation(make_backbone("data"), SquaredError(), trajectory_norm="none")
    given = trajectory()
    oracle = [patchify(state, PATCH) for state in given.states[:-1]]
    terms = head.supervise(oracle, given)
    assert list(terms) == [f"align_{index}" for index in range(GROUPS)]
    assert all(term.shape == (2,) and not term.any() for term in terms.values())
    assert head.supervise([oracle[1], oracle[0], oracle[2]], given)["align_0"].min() > 0.1
    # The projections are part of the reverse model, so sampling keeps them.
    assert len(list(head.parameters())) == len(list(head.backbone.parameters()))


@pytest.mark.parametrize("states", ["hidden", "data"])
@pytest.mark.parametrize("denoise_layers", [0, 1])
def test_every_state_space_runs_as_its_groups_do(states, denoise_layers):
    backbone, z, condition = make_backbone(states, denoise_layers), random_images(), condition_of(0, 1)
    state = backbone.embed(z)
    for index in reversed(range(GROUPS)):
        assert state.shape == (2, SIZE, backbone.state_features)
        state = backbone.group(index, state, condition)
    assert torch.equal(backbone(z, condition)["main"], backbone.finish(state, condition))
    assert backbone.state_features == (WIDTH if states == "hidden" else FEATURES)


@pytest.mark.parametrize("states", ["hidden", "data"])
def test_reverse_model_is_not_causal(states):
    """Every token of the sample depends on every token of the noise."""
    backbone, condition = make_backbone(states), condition_of(0)
    jacobian = torch.autograd.functional.jacobian(lambda z: backbone(z, condition)["main"], random_images(1))
    tokens = patchify(jacobian.reshape(-1, CHANNELS, SIZE, SIZE), PATCH).abs().amax(dim=2)
    by_output = patchify(tokens.T.reshape(-1, CHANNELS, SIZE, SIZE), PATCH).amax(dim=2)
    assert by_output.shape == (SIZE, SIZE) and by_output.min() > 1e-6


def test_heads_refuse_the_other_state_space():
    with pytest.raises(ValueError, match="states 'data', found 'hidden'"):
        HiddenDistillation(make_backbone(), SquaredError())
    with pytest.raises(ValueError, match="states 'hidden', found 'data'"):
        HiddenAlignment(make_backbone("data"), SquaredError())


@pytest.mark.parametrize("head_type", [HiddenAlignment, HiddenDistillation])
def test_ordinary_guidance_runs_no_null_branch_in_training(head_type):
    states = "data" if head_type is HiddenDistillation else "hidden"
    head = head_type(make_backbone(states), SquaredError(), trajectory_norm="none")
    calls = []
    for group in head.backbone.group_layers:
        group.register_forward_hook(lambda _, arguments, __: calls.append(arguments[1].tolist()))
    z, condition = random_images(), condition_of(0, 1, scale=0.0)
    guided = head(z, condition, ClassifierFreeGuidance())
    assert calls == [[0, 1]] * GROUPS
    assert torch.equal(guided.sample, head(z, condition).sample)


@pytest.mark.parametrize("states", ["hidden", "data"])
def test_guided_chain_is_what_one_pass_samples(states):
    head_type = HiddenDistillation if states == "data" else HiddenAlignment
    head = head_type(make_backbone(states), SquaredError(), trajectory_norm="none")
    z, condition = random_images(), condition_of(0, CLASSES)
    output = head(z, condition, TrainingTimeCFG())
    sampled = head.backbone(z, condition)["main"]
    assert torch.equal(output.sample[1], sampled[1]) and not torch.allclose(output.sample[0], sampled[0], atol=1e-3)
