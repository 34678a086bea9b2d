"""Ordinary guidance by two passes, and a scale for every group (docs/biflow.md, B16)."""

import pytest
import torch

from genflow.backbones import GroupedTransformer
from genflow.backbones.base import Backbone
from genflow.codecs.identity import Identity
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.generators.reverse import OnePassGenerator, TwoPassGenerator
from genflow.guidance import ClassifierFreeGuidance

SIZE, CHANNELS, PATCH, CLASSES, GROUPS = 4, 2, 2, 3, 3
LABELS = torch.tensor([0, 1, 2, CLASSES])


def make_backbone():
    torch.manual_seed(0)
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, GROUPS, 1, 1, CLASSES, 3, 2)
    for name, parameter in backbone.named_parameters():
        if parameter.dim() == 1 or name == "output.weight":
            torch.nn.init.normal_(parameter, std=0.5)
    return backbone.double()


def make_generator(per_group=True, kind=TwoPassGenerator):
    options = {"per_group": per_group} if kind is TwoPassGenerator else {}
    return kind(make_backbone(), Identity(SIZE, CHANNELS), **options)


def noise():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(LABELS), CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)


def condition(scale):
    return Condition(labels=LABELS, guidance=torch.as_tensor(scale, dtype=torch.float64).expand(len(LABELS), -1)[:, 0])


def rows_of_groups(generator):
    """How many rows every group is run on, in order."""
    rows = []
    for group in generator.network.group_layers:
        group.register_forward_hook(lambda _, arguments, __: rows.append(len(arguments[0])))
    return rows


def test_two_passes_guide_every_group_on_the_same_input():
    generator, z, scale = make_generator(), noise(), 1.5
    network = generator.network
    plain = Condition(labels=LABELS, guidance=torch.zeros(len(LABELS)))
    null = plain.unlabelled(CLASSES)
    state = network.embed(z)
    for index in reversed(range(GROUPS)):
        state = (1 + scale) * network.group(index, state, plain) - scale * network.group(index, state, null)
    expected = network.finish(state, plain)
    found = generator(z, condition([scale]))
    assert torch.allclose(found, expected, atol=1e-12)
    assert not torch.allclose(found, generator(z, condition([0.0])), atol=1e-3)


def test_without_groups_the_sample_is_guided():
    generator, z, scale = make_generator(per_group=False), noise(), 1.5
    plain = Condition(labels=LABELS, guidance=torch.zeros(len(LABELS)))
    labelled, null = (generator.network(z, c)["main"] for c in (plain, plain.unlabelled(CLASSES)))
    assert torch.allclose(generator(z, condition([scale])), (1 + scale) * labelled - scale * null, atol=1e-12)


@pytest.mark.parametrize("per_group", [True, False])
def test_scale_zero_is_one_plain_pass_and_no_class_is_a_fixed_point(per_group):
    generator, z = make_generator(per_group), noise()
    rows = rows_of_groups(generator)
    plain = generator(z, condition([0.0]))
    assert rows == [len(LABELS)] * GROUPS
    rows.clear()
    guided = generator(z, condition([2.0]))
    assert rows == [2 * len(LABELS)] * GROUPS  # exactly two evaluations of every group
    assert torch.allclose(guided[3], plain[3], atol=1e-12)
    one_pass = OnePassGenerator(generator.network, generator.codec)
    rows.clear()
    assert torch.equal(one_pass(z, condition([0.0])), plain)
    assert rows == [len(LABELS)] * GROUPS


def test_evaluations_are_declared():
    assert make_generator().nfe == 2 and make_generator(kind=OnePassGenerator).nfe == 1


@pytest.mark.parametrize("kind", [OnePassGenerator, TwoPassGenerator])
def test_a_scale_for_every_group(kind):
    generator, labels = make_generator(kind=kind).float(), LABELS
    same = generator.sample(labels, 0, [1.0] * GROUPS, decode=False)
    assert torch.allclose(same, generator.sample(labels, 0, 1.0, decode=False), atol=1e-5)
    for index in range(GROUPS):  # the list is in the order of the states
        scales = [0.0] * GROUPS
        scales[index] = 1.0
        seen = {}
        network = generator.network
        original = type(network).group

        def record(i, state, given, seen=seen, original=original, network=network):
            seen[i] = given.guidance.clone()
            return original(network, i, state, given)

        network.group = record
        sample = generator.sample(labels, 0, scales, decode=False)
        del network.group
        assert not torch.allclose(sample, generator.sample(labels, 0, 0.0, decode=False), atol=1e-4)
        if kind is OnePassGenerator:
            assert {i: bool(scale.any()) for i, scale in seen.items()} == {i: i == index for i in range(GROUPS)}


@pytest.mark.parametrize(("guidance", "message"), [
    ([1.0, 2.0], r"found 2 scales, expected 1 or 3"),
    ([0.0, 0.0, -1.0], r"found -1\.0, expected at least 0"),
    ([0.0, 0.0, float("nan")], r"found nan, expected at least 0"),
])  # fmt: skip
def test_wrong_scales_are_refused(guidance, message):
    with pytest.raises(UserError, match=message):
        make_generator().sample(LABELS, 0, guidance)


def test_groups_of_a_backbone_without_groups_are_refused():
    class Plain(Backbone):
        image_shape, num_classes = (CHANNELS, SIZE, SIZE), CLASSES

    with pytest.raises(ValueError, match="Plain has no groups to guide"):
        TwoPassGenerator(Plain(), Identity(SIZE, CHANNELS), per_group=True)


def test_training_drops_labels_and_draws_no_scale():
    guidance, draws = ClassifierFreeGuidance(label_drop=0.25), Draws(0, torch.arange(4000))
    dropped = guidance.drop_labels(torch.zeros(4000, dtype=torch.int64), CLASSES, draws) == CLASSES
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not guidance.draw(draws).any() and not guidance.in_training
    guided = torch.ones(2, 3)
    assert guidance.recover(guided, torch.zeros(2, 3), torch.ones(2), torch.zeros(2, dtype=torch.bool)) is guided
