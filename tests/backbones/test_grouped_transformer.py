"""The reverse transformer: what its outputs depend on, its in-context tokens and its size (docs/biflow.md, B11)."""

import pytest
import torch

from genflow.backbones import GroupedTransformer
from genflow.condition import Condition
from genflow.flow_teachers import TARFlow
from genflow.layers.embeddings import axial_rotation

SIZE, CHANNELS, PATCH, CLASSES = 4, 2, 2, 3  # T = 4 tokens of D = 8 features
TOKENS, GROUPS = 4, 2
ALL_GROUPS = [*range(GROUPS), "denoise"]


def make_backbone(broken_gates=True, **options):
    """A backbone in float64; with ``broken_gates`` nothing starts at zero any more."""
    torch.manual_seed(0)
    arguments = {
        "denoise_layers": 1,
        "num_classes": CLASSES,
        "class_tokens": 3,
        "guidance_tokens": 2,
        **options,
    }
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, GROUPS, 1, **arguments).double()
    if broken_gates:
        for name, parameter in backbone.named_parameters():
            if parameter.dim() == 1 or name == "output.weight":
                torch.nn.init.normal_(parameter, std=0.5)
    return backbone


def make_input(batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)


def condition_of(*labels, scale=1.5):
    return Condition(labels=torch.tensor(labels), guidance=torch.full((len(labels),), scale))


def run_group(backbone, index, hidden, condition):
    """Group ``index``, or the layers of the denoising group before the output map."""
    if index == "denoise":
        return backbone.denoise_layers(hidden, condition.labels, backbone._guidance(condition), backbone.angles)
    return backbone.group(index, hidden, condition)


def test_sizes():
    backbone, x = make_backbone(), make_input()
    hidden = backbone.embed(x)
    assert hidden.shape == (2, TOKENS, 16)
    for index in range(GROUPS):
        assert backbone.group(index, hidden, condition_of(0, 1)).shape == hidden.shape
    assert backbone.finish(hidden, condition_of(0, 1)).shape == x.shape
    assert backbone(x, condition_of(0, 1))["main"].shape == x.shape


def test_starts_with_identity_groups_and_a_zero_output():
    backbone, x = make_backbone(broken_gates=False), make_input()
    hidden = backbone.embed(x)
    for index in ALL_GROUPS:
        assert torch.equal(run_group(backbone, index, hidden, condition_of(0, 1)), hidden)
    assert not backbone(x, condition_of(0, 1))["main"].any()
    no_class = condition_of(CLASSES, -1)
    assert torch.equal(backbone(x, no_class)["main"], torch.zeros_like(x))


def test_forward_runs_the_groups_from_last_to_first():
    backbone, x, condition = make_backbone(), make_input(), condition_of(0, 2)
    hidden = backbone.group(0, backbone.group(1, backbone.embed(x), condition), condition)
    assert torch.equal(backbone(x, condition)["main"], backbone.finish(hidden, condition))
    swapped = backbone.group(1, backbone.group(0, backbone.embed(x), condition), condition)
    assert not torch.allclose(hidden, swapped)


@pytest.mark.parametrize("index", ALL_GROUPS)
def test_every_output_token_depends_on_every_input_token(index):
    backbone = make_backbone()
    hidden = backbone.embed(make_input(1))[0]
    jacobian = torch.autograd.functional.jacobian(
        lambda state: run_group(backbone, index, state[None], condition_of(1))[0], hidden
    )
    assert (jacobian.abs().sum(dim=(1, 3)) > 1e-4).all()


def test_every_output_pixel_depends_on_every_input_pixel():
    backbone = make_backbone()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: backbone(x[None], condition_of(1))["main"][0], make_input(1)[0]
    )
    assert (jacobian.abs() > 1e-9).all()


def test_class_enters_every_group_but_the_denoising_one():
    backbone, x = make_backbone(), make_input(1)
    hidden = backbone.embed(x)
    for index in ALL_GROUPS:
        outputs = [run_group(backbone, index, hidden, condition_of(label)) for label in (0, 1, CLASSES, -1)]
        if index == "denoise":
            assert all(torch.equal(output, outputs[0]) for output in outputs)
            continue
        assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
        assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)
        assert torch.equal(outputs[2], outputs[3])
    finished = [backbone.finish(hidden, condition_of(label)) for label in range(CLASSES + 1)]
    assert all(torch.equal(image, finished[0]) for image in finished)
    assert not torch.allclose(*(backbone(x, condition_of(label))["main"] for label in (0, 1)), atol=1e-4)


@pytest.mark.parametrize("index", ALL_GROUPS)
def test_guidance_scale_enters_every_group(index):
    backbone = make_backbone()
    hidden = backbone.embed(make_input(1))
    outputs = [run_group(backbone, index, hidden, condition_of(1, scale=scale)) for scale in (0.0, 1.0, 7.0)]
    for one, other in ((0, 1), (1, 2)):
        assert (outputs[one] - outputs[other]).abs().max() > 1e-4


def test_samples_do_not_interact():
    backbone, x = make_backbone(), make_input(3)
    condition = Condition(labels=torch.tensor([0, 2, CLASSES]), guidance=torch.tensor([0.0, 1.0, 7.0]))
    together = backbone(x, condition)["main"]
    for row in range(3):
        part = Condition(labels=condition.labels[row : row + 1], guidance=condition.guidance[row : row + 1])
        assert torch.allclose(backbone(x[row : row + 1], part)["main"][0], together[row], atol=1e-12)


@pytest.mark.parametrize("missing", ["labels", "guidance"])
def test_missing_condition_is_named(missing):
    fields = {"labels": torch.zeros(2, dtype=torch.int64), "guidance": torch.zeros(2)}
    del fields[missing]
    with pytest.raises(ValueError, match=rf"GroupedTransformer needs Condition\.{missing}"):
        make_backbone()(make_input(), Condition(**fields))


def test_in_context_tokens_are_not_rotated():
    backbone, seen = make_backbone(), []
    for module in backbone.modules():
        if type(module).__name__ == "TransformerLayer":
            module.register_forward_pre_hook(lambda _, __, options: seen.append(options["angles"]), with_kwargs=True)
    backbone(make_input(), condition_of(0, 1))
    assert [len(angles) - TOKENS for angles in seen] == [
        5,
        5,
        2,
    ]  # class and guidance tokens, then guidance alone
    for angles in seen:
        assert not angles[:-TOKENS].any()
        assert torch.equal(angles[-TOKENS:].float(), axial_rotation(SIZE // PATCH, 8))


def test_in_context_tokens_have_no_order_and_image_tokens_have():
    backbone = make_backbone()
    hidden = backbone.embed(make_input(1))
    group, condition = backbone.group_layers[0], condition_of(1)
    before = backbone.group(0, hidden, condition)
    with torch.no_grad():
        group.class_tokens.copy_(group.class_tokens.flip(0))
        group.guidance_tokens.copy_(group.guidance_tokens.flip(0))
    assert torch.allclose(backbone.group(0, hidden, condition), before, atol=1e-12)
    # Without positions the group would commute with any exchange of patches.
    exchanged = backbone.group(0, hidden[:, [1, 2, 0, 3]], condition)
    assert not torch.allclose(exchanged, before[:, [1, 2, 0, 3]], atol=1e-4)


def test_without_a_denoising_group():
    backbone = make_backbone(denoise_layers=0)
    hidden = backbone.embed(make_input())
    expected = backbone.output(backbone.output_norm(hidden))
    assert torch.equal(backbone.finish(hidden, condition_of(0, 1))[:, :, :2, :2].flatten(1), expected[:, 0])


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


IMPROVED = {
    "norm": "rms",
    "feedforward": "swiglu",
    "qk_norm": True,
    "positions": "rotary",
    "prefix_tokens": 8,
    "bound": 3.0,
}


def test_published_sizes():
    """120 M and 690 M for the flows, 133 M for the reverse model."""
    with torch.device("meta"):
        flow = TARFlow(32, 4, 2, 768, 8, 2, 1000, **IMPROVED)
        large_flow = TARFlow(32, 4, 2, 1536, 8, 3, 1000, **IMPROVED)
        backbone = GroupedTransformer(32, 4, 2, 768, 12, 8, 2, 2, 1000)
    assert 119e6 < count(flow) < 121e6 and count(flow) == pytest.approx(119.77e6, rel=0.01)
    assert 132e6 < count(backbone) < 135e6 and count(backbone) == pytest.approx(133.88e6, rel=0.01)
    assert count(large_flow) == pytest.approx(690e6, rel=0.01)
    assert large_flow.flow_blocks[0].layers[0].attention.heads == 24


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="patch_size"):
        GroupedTransformer(5, 1, 2, 16, 2, 1, 1)
    with pytest.raises(ValueError, match="heads"):
        GroupedTransformer(4, 1, 2, 16, 3, 1, 1)
    with pytest.raises(ValueError, match="divisible by 4"):
        GroupedTransformer(4, 1, 2, 12, 2, 1, 1)
