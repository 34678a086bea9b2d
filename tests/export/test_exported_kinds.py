"""Every kind of generator as a graph: ONNX, pt2 and the generator itself agree at batch sizes that were not traced."""

import pytest
import torch
from torch import nn

from genflow.backbones import MLP, GroupedTransformer, JiT, LightningDiT, PixelTransformer
from genflow.codecs.identity import Identity
from genflow.errors import UserError
from genflow.export import run as export
from genflow.export.formats import FORMATS, write_onnx
from genflow.export.run import LARGEST, ROOT_MEAN_SQUARE, Difference
from genflow.export.sampler import Sampler, check_exportable, input_names, made_up_inputs, trace
from genflow.field_estimators import AverageVelocity, InstantaneousVelocity
from genflow.flow_teachers import TARFlow
from genflow.generators.drifting import DriftingGenerator
from genflow.generators.flow import FlowGenerator
from genflow.generators.reverse import OnePassGenerator, TwoPassGenerator
from genflow.generators.velocity import AverageVelocityGenerator, InstantaneousVelocityGenerator

CODEC = {"image_size": 4, "channels": 2}
SHAPE = {**CODEC, "patch_size": 2, "width": 8, "heads": 1}


@pytest.fixture(scope="module", autouse=True)
def one_registry():
    """The exporter reads its list of operators anew at every call, which takes longer than a tiny network."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    made, build = {}, ONNXRegistry.from_torchlib

    def kept(opset_version):
        if opset_version not in made:
            made[opset_version] = build(opset_version=opset_version)
        return made[opset_version]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(kept))
        yield


def random(network, std=0.3):
    """Weights of which none is zero, as output maps and gates are before training."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return network.eval().requires_grad_(False)


def grouped():
    return random(GroupedTransformer(**SHAPE, groups=1, layers=1, denoise_layers=0, num_classes=3, class_tokens=1))


def flow():
    return random(TARFlow(4, 2, 2, 8, 1, 1, 3, head_width=4, norm="rms", positions="rotary", prefix_tokens=1), 0.12)


def average_velocity():
    network = PixelTransformer(**SHAPE, depth=1, head_depth=1, num_classes=3, class_tokens=1)
    return AverageVelocityGenerator(random(network), AverageVelocity(), Identity(**CODEC), 1.0, steps=2)


def instantaneous_velocity():
    network = JiT(**SHAPE, depth=1, num_classes=3, bottleneck=4, context_tokens=1, context_start=0)
    return InstantaneousVelocityGenerator(random(network), InstantaneousVelocity(), Identity(**CODEC), 1.0, steps=2)


def drifting():
    style = {"style_codebooks": 2, "style_entries": 3, "context_tokens": 1}
    return DriftingGenerator(random(LightningDiT(**SHAPE, depth=1, num_classes=3, **style)), Identity(**CODEC))


KINDS = {
    "one pass and a score step": lambda: OnePassGenerator(grouped(), Identity(**CODEC), 0.5, flow(), 0.3),
    "two passes": lambda: TwoPassGenerator(grouped(), Identity(**CODEC), per_group=True),
    "average velocity": average_velocity,
    "instantaneous velocity": instantaneous_velocity,
    "drifting": drifting,
}


def expected(generator, sizes=(3, 1)):
    """Inputs, the smaller batch at the lowest scale, and what the generator makes of them."""
    tried = [made_up_inputs(generator, size, lowest=size == 1) for size in sizes]
    return [(inputs, Sampler(generator)(**inputs)) for inputs in tried]


#: Their graphs hold more than that of one pass, and take long to compare.
LONG = ("one pass and a score step", "average velocity", "instantaneous velocity")


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=kind, marks=[pytest.mark.slow] * (kind in LONG)) for kind, make in KINDS.items()],
)
def test_both_formats_are_the_generator_at_other_batch_sizes(make, tmp_path):
    generator = make()
    tried = expected(generator)
    program = trace(generator, None)
    assert ("style" in input_names(program)) == isinstance(generator, DriftingGenerator)
    assert {"noise", "labels", "guidance"} <= set(input_names(program))
    for name, (write, open_file) in FORMATS.items():
        write(program, tmp_path / name, {"system": "tiny"})
        session = open_file(tmp_path / name)
        for inputs, pictures in tried:
            found = session(inputs)
            assert pictures.std() > 0.1 and (found - pictures).abs().max() < 1e-4, name
    images = make().sample([0, 1], seed=0, guidance=torch.tensor([1.0, 1.5]))
    draws = made_up_inputs(make(), 2) | {"guidance": torch.tensor([1.0, 1.5])}
    assert (session(draws) - images).abs().max() < 1e-4


def test_half_precision_in_onnx(tmp_path):
    generator = drifting()
    tried = expected(generator)
    generator.accelerate("float16")
    program = trace(generator, None)
    write, open_file = FORMATS["onnx"]
    write(program, tmp_path / "half.onnx", {})
    session = open_file(tmp_path / "half.onnx")
    difference = export._difference([(session(inputs), pictures) for inputs, pictures in tried])
    assert 1e-5 < difference.root_mean_square < ROOT_MEAN_SQUARE["float16"] and not difference.exceeds("float16")
    import onnx

    types = {tensor.data_type for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer if len(tensor.dims) > 1}
    assert onnx.TensorProto.FLOAT16 in types


def test_inputs_that_change_nothing_are_left_out():
    field, codec = AverageVelocity(), Identity(1, 2)
    program = trace(AverageVelocityGenerator(random(MLP(1, 2, 4, 2)), field, codec, 1.0), None)
    assert list(input_names(program)) == ["noise"]
    program = trace(AverageVelocityGenerator(random(MLP(1, 2, 4, 2, 3)), field, codec, 1.0), 2)
    assert list(input_names(program)) == ["noise", "labels"]
    noise, labels = torch.randn(2, 2, 1, 1), torch.tensor([0, 2])
    assert program.module()(noise=noise, labels=labels).shape == (2, 2, 1, 1)
    with pytest.raises(Exception, match=r"== 2"):
        program.module()(noise=torch.randn(3, 2, 1, 1), labels=torch.tensor([0, 1, 2]))


def test_an_interval_without_times_leaves_guidance_out():
    generator = instantaneous_velocity()
    generator.set_sampling(steps=1, interval=(0, 0))
    assert list(input_names(trace(generator, 2))) == ["noise", "labels"]


class Deciding(MLP):
    """A network whose way depends on its numbers."""

    def forward(self, x, condition, heads=("main",)):
        return super().forward(x if x.sum() > 0 else -x, condition, heads)


def test_what_cannot_be_exported_is_one_line():
    with pytest.raises(UserError, match=r"exact inverse of a flow is not exported: its .* evaluations"):
        check_exportable(FlowGenerator(flow(), Identity(**CODEC), 0.0))
    codec = Identity(1, 2)
    codec.can_decode = False
    generator = AverageVelocityGenerator(random(Deciding(1, 2, 4, 2)), AverageVelocity(), codec, 1.0)
    with pytest.raises(UserError, match="Identity has no weights to decode with; set its 'weights'"):
        check_exportable(generator)
    with pytest.raises(UserError, match=r"AverageVelocityGenerator over Deciding cannot be exported: .") as caught:
        trace(generator, None)
    assert str(caught.value).isprintable()


def test_onnx_holds_two_gibibytes(tmp_path, monkeypatch):
    program = trace(AverageVelocityGenerator(random(MLP(1, 2, 4, 2)), AverageVelocity(), Identity(1, 2), 1.0), 2)
    monkeypatch.setattr("genflow.export.formats._MOST_BYTES", 100)
    with pytest.raises(UserError, match="one ONNX file holds 2; use --precision float16 or --format pt2"):
        write_onnx(program, tmp_path / "x.onnx", {})


def test_bounds():
    assert not Difference(LARGEST, 0.0, 1).exceeds("float32")
    assert Difference(2e-4, 0.0, 1).exceeds("float32") == "the largest difference is 0.0002, above 0.0001"
    assert not Difference(1.0, 0.003, 1).exceeds("float16")
    assert Difference(0.0, 0.02, 1).exceeds("float16") and not Difference(0.0, 0.02, 1).exceeds("bfloat16")
    broken = export._difference([(torch.tensor([[float("nan"), 0.0]]), torch.zeros(1, 2))])
    assert all(broken.exceeds(precision) for precision in ("float32", "float16", "bfloat16"))
