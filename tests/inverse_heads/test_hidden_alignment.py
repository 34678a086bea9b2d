"""Hidden alignment: which state each group faces, normalised targets, the guided chain (docs/biflow.md, B13, B17)."""

import pytest
import torch

from genflow.backbones import GroupedTransformer
from genflow.condition import Condition
from genflow.flow_teachers.base import Trajectory
from genflow.guidance import TrainingTimeCFG
from genflow.inverse_heads import HiddenAlignment
from genflow.layers.patches import patchify
from genflow.losses import AdaptiveWeighting, SquaredError
from genflow.losses.base import Loss

SIZE, CHANNELS, PATCH, CLASSES, GROUPS, WIDTH = 4, 2, 2, 3, 3, 16
FEATURES = CHANNELS * PATCH**2


class RecordedLoss(Loss):
    """Squared error that keeps its targets."""

    def __init__(self):
        super().__init__()
        self.targets = []

    def forward(self, prediction, target):
        self.targets.append(target)
        return SquaredError()(prediction, target)


def make_head(loss=None, trajectory_norm="none", groups=GROUPS, classes=CLASSES, **options):
    """A head in float64 in which nothing starts at zero."""
    torch.manual_seed(0)
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, WIDTH, 2, groups, 1, 1, classes, 3, 2)
    for name, parameter in backbone.named_parameters():
        if parameter.dim() == 1 or name == "output.weight":
            torch.nn.init.normal_(parameter, std=0.5)
    return HiddenAlignment(backbone, loss or SquaredError(), trajectory_norm=trajectory_norm, **options).double()


def random_images(batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)


def make_trajectory(states=None, batch=2):
    if states is None:
        states = [random_images(batch, seed=index) for index in range(GROUPS + 1)]
    return Trajectory(states, [torch.zeros(len(states[0]))] * (len(states) - 1), torch.zeros(()))


def constant_trajectory(batch=2, blocks=GROUPS):
    """The state x^i is i everywhere."""
    return make_trajectory([torch.full_like(random_images(batch), index) for index in range(blocks + 1)])


def condition_of(*labels, scale=2.0):
    return Condition(labels=torch.tensor(labels), guidance=torch.full((len(labels),), scale))


def record_groups(backbone):
    """Append (group, labels, gradient enabled) of every run of a group's layers to the list returned."""
    calls = []
    groups = [*enumerate(backbone.group_layers), ("denoise", backbone.denoise_layers)]
    for index, group in groups:
        group.register_forward_hook(
            lambda _, arguments, __, index=index: calls.append((index, arguments[1].tolist(), torch.is_grad_enabled()))
        )
    return calls


def test_group_i_faces_state_i_and_the_latent_is_no_target():
    head = make_head(RecordedLoss())
    hidden = head(random_images(), condition_of(0, 1)).hidden
    terms = head.supervise(hidden, constant_trajectory())
    assert list(terms) == [f"align_{index}" for index in range(GROUPS)]
    assert len(head.loss.targets) == GROUPS
    for index, target in enumerate(head.loss.targets):
        assert target.eq(index).all()


@pytest.mark.parametrize("norm", ["none", "sample", "state"])
def test_hidden_state_i_is_the_output_of_group_i_and_meets_projection_i(norm):
    """Index all three: the run of the groups, the list of hidden states and the projections."""
    head = make_head(trajectory_norm=norm)
    order = record_groups(head.backbone)
    hidden = head(random_images(), condition_of(0, 1)).hidden
    assert [index for index, _, _ in order] == [2, 1, 0, "denoise"]
    state = head.backbone.embed(random_images())
    for index in reversed(range(GROUPS)):
        state = head.backbone.group(index, state, condition_of(0, 1))
        assert torch.equal(hidden[index], state)
        assert torch.equal(patchify(head.project(hidden)[index], PATCH), head.projections[index](hidden[index]))


@pytest.mark.parametrize("norm", ["none", "sample", "state"])
@pytest.mark.parametrize("loss", [SquaredError(), AdaptiveWeighting(SquaredError())])
def test_oracle_has_no_alignment_loss(norm, loss):
    """Hidden states that carry the targets in their first channels, and projections that read these."""
    head, trajectory = make_head(loss, norm), make_trajectory()
    for projection in head.projections:
        torch.nn.init.eye_(projection.weight)
    targets = trajectory.states[:-1]
    if norm != "none":
        head.trajectory_norm(targets)
        head.trajectory_norm.after_update()
        head.eval()
        targets = head.trajectory_norm(targets)
    padding = torch.ones(2, SIZE, WIDTH - FEATURES, dtype=torch.float64)
    hidden = [torch.cat([patchify(target, PATCH), padding], dim=-1) for target in targets]
    for term in head.supervise(hidden, trajectory).values():
        assert term.shape == (2,) and term.abs().max() < 1e-20
    exchanged = [hidden[1], hidden[0], *hidden[2:]]
    terms = head.supervise(exchanged, trajectory)
    assert terms["align_0"].min() > 0.1 and terms["align_1"].min() > 0.1


def test_terms_are_per_sample():
    head, trajectory = make_head(), make_trajectory()
    whole = head.supervise(head(random_images(), condition_of(0, 1)).hidden, trajectory)
    for row in range(2):
        part = make_trajectory([state[row : row + 1] for state in trajectory.states])
        alone = head.supervise(head(random_images()[row : row + 1], condition_of(row)).hidden, part)
        for name, term in whole.items():
            assert term[row].item() == pytest.approx(alone[name].item(), rel=1e-10)


def test_linear_and_mlp_projections():
    linear, mlp = make_head(), make_head(projection="mlp")
    assert isinstance(linear.projections[0], torch.nn.Linear) and not linear.projections[0].bias.any()
    assert sum(p.numel() for p in linear.projections.parameters()) == GROUPS * (WIDTH + 1) * FEATURES
    assert len(mlp.projections[0]) == 3
    hidden = mlp(random_images(), condition_of(0, 1)).hidden
    assert mlp.project(hidden)[0].shape == (2, CHANNELS, SIZE, SIZE)


def targets_of(head, states):
    """The targets after an update that has seen ``states``, in training mode; without one otherwise."""
    training = head.training
    if training and head.trajectory_norm is not None:
        head.trajectory_norm(states[:-1])
        head.trajectory_norm.after_update()
    head.eval()
    head.loss.targets.clear()
    hidden = [torch.zeros(len(states[0]), SIZE, WIDTH, dtype=torch.float64)] * GROUPS
    head.supervise(hidden, make_trajectory(states))
    head.train(training)
    return torch.stack(head.loss.targets)


@pytest.mark.parametrize("norm", ["sample", "state"])
def test_scale_of_the_states_does_not_change_the_targets(norm):
    states = [random_images(8, seed=index) for index in range(GROUPS + 1)]
    targets = []
    for factor in (1.0, 10.0):
        head = make_head(RecordedLoss(), norm, norm_warmup=3)
        for _ in range(4):
            targets.append(targets_of(head, [factor * state for state in states]))
    for target in targets:
        assert torch.allclose(target, targets[0], rtol=1e-12)
        assert torch.allclose(target.square().mean(dim=(1, 2, 3, 4)), torch.ones(GROUPS, dtype=torch.float64))


def test_norm_per_sample_gives_every_sample_unit_mean_square():
    head = make_head(RecordedLoss(), "sample")
    sizes = torch.tensor([1.0, 100.0]).view(-1, 1, 1, 1)
    states = [sizes * random_images(2, seed=index) for index in range(GROUPS + 1)]
    square = targets_of(head, states).square().mean(dim=(2, 3, 4))
    assert torch.allclose(square, torch.ones_like(square))


def test_norm_per_state_keeps_the_relative_size_of_samples():
    head = make_head(RecordedLoss(), "state")
    sizes = torch.tensor([1.0, 100.0]).view(-1, 1, 1, 1)
    states = [sizes * random_images(1).expand(2, -1, -1, -1) for _ in range(GROUPS + 1)]
    targets = targets_of(head, states)
    assert torch.allclose(targets[:, 1], 100 * targets[:, 0])


def test_running_norm_averages_its_warm_up_then_freezes():
    head = make_head(RecordedLoss(), "state", norm_warmup=3)
    batches = [[random_images(4, seed=10 * b + i) * (b + 1) for i in range(GROUPS + 1)] for b in range(5)]
    for states in batches[:3]:
        targets_of(head, states)
    squares = torch.stack([torch.stack([x.square().mean() for x in states[:-1]]) for states in batches[:3]])
    assert torch.allclose(head.trajectory_norm.mean_square, squares.mean(dim=0), rtol=1e-12)
    frozen = head.trajectory_norm.mean_square.clone()
    for states in batches[3:]:
        targets = targets_of(head, states)
        expected = torch.stack([x / square.sqrt() for x, square in zip(states[:-1], frozen, strict=True)])
        assert torch.allclose(targets, expected, rtol=1e-12)
    assert torch.equal(head.trajectory_norm.mean_square, frozen)


def test_running_norm_learns_once_per_update_from_all_micro_batches():
    whole, parts = make_head(RecordedLoss(), "state"), make_head(RecordedLoss(), "state")
    states = [(index + 2) * random_images(6, seed=index) for index in range(GROUPS)]
    assert torch.equal(whole.trajectory_norm(states)[0], states[0])  # nothing learnt before the update ends
    for start, end in ((0, 1), (1, 4), (4, 6)):
        parts.trajectory_norm([state[start:end] for state in states])
    for head in (whole, parts):
        head.trajectory_norm.after_update()
        head.trajectory_norm.after_update()  # nothing seen since
        assert head.trajectory_norm.updates == 1
    assert torch.allclose(whole.trajectory_norm.mean_square, parts.trajectory_norm.mean_square, rtol=1e-12)
    assert whole.trajectory_norm.mean_square[2] > 4


def test_running_norm_learns_nothing_in_evaluation_mode():
    head = make_head(RecordedLoss(), "state").eval()
    states = [10 * random_images(4, seed=index) for index in range(GROUPS + 1)]
    assert torch.equal(targets_of(head, states), torch.stack(states[:-1]))
    assert head.trajectory_norm.updates == 0 and head.trajectory_norm.mean_square.eq(1).all()
    head.train()
    assert targets_of(head, states).square().mean().item() == pytest.approx(1.0)


def test_norm_state_is_saved():
    head, other = make_head(RecordedLoss(), "state"), make_head(RecordedLoss(), "state")
    states = [10 * random_images(4, seed=index) for index in range(GROUPS + 1)]
    expected = targets_of(head, states)
    other.load_state_dict(head.state_dict())
    assert torch.equal(targets_of(other.eval(), states), expected)
    assert other.trajectory_norm.updates == 1


def test_without_norm_targets_are_the_states():
    head = make_head(RecordedLoss(), "none")
    states = [10 * random_images(4, seed=index) for index in range(GROUPS + 1)]
    assert torch.equal(targets_of(head, states), torch.stack(states[:-1]))


def test_without_guidance_every_group_runs_once_and_no_null_branch():
    head = make_head()
    calls = record_groups(head.backbone)
    head(random_images(), condition_of(0, 1))
    assert calls == [(index, [0, 1], True) for index in (2, 1, 0, "denoise")]


def test_with_guidance_the_null_branch_runs_beside_every_group_without_gradient():
    head = make_head()
    calls = record_groups(head.backbone)
    head(random_images(), condition_of(0, 1), TrainingTimeCFG())
    for index in (2, 1, 0, "denoise"):
        ours = sorted(call[1:] for call in calls if call[0] == index)
        assert ours == [([0, 1], True), ([CLASSES, CLASSES], False)]


def test_guided_chain_feeds_guided_states_onward():
    head, guidance = make_head(), TrainingTimeCFG()
    backbone, z, condition, scale = head.backbone, random_images(), condition_of(0, 1, scale=2.0), 2.0
    output = head(z, condition, guidance)
    null_condition = condition_of(CLASSES, CLASSES)
    state = backbone.embed(z)
    for index in reversed(range(GROUPS)):
        guided, null = (backbone.group(index, state, c) for c in (condition, null_condition))
        assert torch.allclose(output.hidden[index], (guided + scale * null) / (1 + scale), atol=1e-12)
        assert not torch.allclose(output.hidden[index], guided, atol=1e-3)
        state = guided
    sampled = backbone(z, condition)["main"]
    assert torch.equal(backbone.finish(state, condition), sampled)  # what feeds onward is what sampling computes
    null_sample = backbone.finish(null, null_condition)
    assert torch.allclose(output.sample, (sampled + scale * null_sample) / (1 + scale), atol=1e-12)


def test_scale_zero_is_the_run_without_guidance():
    head, z, condition = make_head(), random_images(), condition_of(0, 1, scale=0.0)
    plain, guided = head(z, condition), head(z, condition, TrainingTimeCFG())
    assert torch.equal(plain.sample, guided.sample)
    assert all(torch.equal(a, b) for a, b in zip(plain.hidden, guided.hidden, strict=True))


@pytest.mark.parametrize("null", [CLASSES, -1])
def test_without_class_the_output_is_the_groups_own_at_every_scale(null):
    head, z, condition = make_head(), random_images(), condition_of(null, null, scale=3.0)
    plain, guided = head(z, condition), head(z, condition, TrainingTimeCFG())
    assert torch.equal(plain.sample, guided.sample)
    assert all(torch.equal(a, b) for a, b in zip(plain.hidden, guided.hidden, strict=True))


def loss_of(output):
    return output.sample.square().sum() + sum(state.square().sum() for state in output.hidden)


def table_gradients(head, condition, guidance):
    head.zero_grad()
    loss_of(head(random_images(), condition, guidance)).backward()
    return [group.classes.table.grad for group in head.backbone.group_layers]


def test_null_branch_of_labelled_samples_carries_no_gradient():
    """The null class is the mean of the table, so its gradient would reach the rows of unused classes."""
    head = make_head()
    for gradient in table_gradients(head, condition_of(1, 1), TrainingTimeCFG()):
        assert gradient[1].abs().max() > 1e-6 and not gradient[[0, 2]].any()
    for null in (CLASSES, -1):
        for gradient in table_gradients(head, condition_of(1, null), TrainingTimeCFG()):
            assert (gradient.abs().amax(dim=1) > 1e-6).all()
            assert torch.allclose(gradient[0], gradient[2])


def test_gradient_of_dropped_samples_is_that_of_training_without_guidance():
    head = make_head()
    for null in (CLASSES, -1):
        condition = condition_of(null, null, scale=5.0)
        with_guidance = table_gradients(head, condition, TrainingTimeCFG())
        without = table_gradients(head, condition, None)
        assert all(torch.equal(a, b) for a, b in zip(with_guidance, without, strict=True))


def test_gradient_treats_the_null_branch_as_a_constant():
    """By hand with the null branch's numbers put in as constants: no other path may carry gradient."""
    head, z, scale = make_head(), random_images(), 2.0
    backbone, condition, null_condition = head.backbone, condition_of(0, 1, scale=scale), condition_of(-1, -1)
    loss_of(head(z, condition, TrainingTimeCFG())).backward()
    found = {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}
    backbone.zero_grad()
    state, hidden = backbone.embed(z), []
    for index in reversed(range(GROUPS)):
        entering, state = state, backbone.group(index, state, condition)
        null = backbone.group(index, entering, null_condition).detach()
        hidden.append((state + scale * null) / (1 + scale))
    null_sample = backbone.finish(null, null_condition).detach()
    sample = (backbone.finish(state, condition) + scale * null_sample) / (1 + scale)
    (sample.square().sum() + sum(state.square().sum() for state in hidden)).backward()
    for name, parameter in backbone.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-9), name


@pytest.mark.parametrize("missing", ["labels", "guidance"])
def test_missing_condition_is_named(missing):
    fields = {"labels": torch.zeros(2, dtype=torch.int64), "guidance": torch.zeros(2)}
    del fields[missing]
    with pytest.raises(ValueError, match=rf"GroupedTransformer needs Condition\.{missing}"):
        make_head()(random_images(), Condition(**fields))
