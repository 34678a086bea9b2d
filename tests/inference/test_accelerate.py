"""Fast forms: weights in bfloat16, compiled evaluations, decoders in bfloat16."""

import shutil
from functools import partial

import pytest
import torch
from tinted_generator import Recording, Tinted, whole
from torch import nn

from genflow.backbones import GroupedMLP, GroupedTransformer, LightningDiT
from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.codecs.identity import Identity
from genflow.errors import UserError
from genflow.field_estimators import AverageVelocity, InstantaneousVelocity
from genflow.flow_teachers import CouplingFlow, TARFlow
from genflow.generators.drifting import DriftingGenerator
from genflow.generators.flow import FlowGenerator
from genflow.generators.reverse import OnePassGenerator, TwoPassGenerator
from genflow.generators.velocity import AverageVelocityGenerator, InstantaneousVelocityGenerator
from genflow.inference.accelerate import accelerate
from genflow.inference.sampling import sample_images


def make_backbone():
    torch.manual_seed(0)
    backbone = GroupedTransformer(8, 2, 2, 32, 2, 2, 1, 1, 3, 3, 2)
    for parameter in backbone.parameters():
        if parameter.dim() == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return backbone.requires_grad_(False)


def make_compilable(cls, **options):
    """The least that has everything: one group of one layer."""
    torch.manual_seed(0)
    backbone = GroupedTransformer(4, 2, 2, 16, 2, 1, 1, 0, 3, 1, 1).requires_grad_(False)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return cls(backbone, Identity(4, 2), **options)


def make_flow():
    torch.manual_seed(0)
    flow = TARFlow(8, 2, 2, 16, 2, 1, 3, head_width=8, prefix_tokens=2, positions="rotary")
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.12)
    return flow.requires_grad_(False)


def make_velocity(cls, **options):
    torch.manual_seed(0)
    flow_matching = cls is InstantaneousVelocityGenerator
    backbone = PixelTransformer(
        8, 4, 16, 1, 2, channels=2, num_classes=3, head_depth=1, clock="time" if flow_matching else "duration"
    )
    for parameter in backbone.parameters():
        if parameter.dim() == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    field = InstantaneousVelocity() if flow_matching else AverageVelocity()
    return cls(backbone.requires_grad_(False), field, Identity(8, 2), 1.0, **options)


def make_drifting():
    """Its attention is computed in float32."""
    torch.manual_seed(0)
    style = {"style_codebooks": 2, "style_entries": 3, "context_tokens": 1}
    backbone = LightningDiT(8, 4, 16, 1, 2, 2, 4, **style)  # it has no "no class"
    for parameter in backbone.parameters():
        if parameter.dim() == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return DriftingGenerator(backbone.requires_grad_(False), Identity(8, 2))


GENERATORS = {
    "one pass": lambda: OnePassGenerator(make_backbone(), Identity(8, 2)),
    "one pass and a score step": lambda: OnePassGenerator(make_backbone(), Identity(8, 2), 0.0, make_flow(), 0.3),
    "two passes": lambda: TwoPassGenerator(make_backbone(), Identity(8, 2)),
    "two passes per group": lambda: TwoPassGenerator(make_backbone(), Identity(8, 2), per_group=True),
    "average velocity": lambda: make_velocity(AverageVelocityGenerator, steps=2),
    "instantaneous velocity": lambda: make_velocity(InstantaneousVelocityGenerator, steps=2),
    "drifting": make_drifting,
    "flow": lambda: FlowGenerator(make_flow(), Identity(8, 2), 0.3),
}


@pytest.fixture(params=GENERATORS.values(), ids=GENERATORS)
def make(request):
    return request.param


def draw(generator, guidance=1.5):
    return generator.sample(torch.tensor([0, 1, 2, 3, 1]), seed=0, guidance=guidance, decode=False)


def test_bfloat16_weights_give_nearly_the_same_samples_in_float32(make):
    plain = draw(make())
    generator = make()
    buffers = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    assert accelerate(generator, "bfloat16") is generator
    assert {parameter.dtype for parameter in generator.network.parameters()} == {torch.bfloat16}
    for name, buffer in generator.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    samples = draw(generator)
    assert samples.dtype == torch.float32
    relative = (samples - plain).norm() / plain.norm()
    assert 1e-4 < relative < 0.02
    if getattr(generator, "denoiser", None) is not None:
        assert {parameter.dtype for parameter in generator.denoiser.parameters()} == {torch.float32}


def test_float32_without_compiling_changes_nothing(make):
    assert torch.equal(draw(accelerate(make())), draw(make()))
    custom = Tinted()
    assert accelerate(custom) is custom


def test_decoding_in_bfloat16():
    labels = torch.zeros(2, dtype=torch.int64)
    generator, codec = Tinted(), Recording()
    generator.codec = codec
    plain = next(sample_images(generator, labels, 0, None, 2, "cpu"))
    generator = accelerate(generator, decode_precision="bfloat16")
    images = next(sample_images(generator, labels, 0, None, 2, "cpu"))
    assert codec.seen == [(2, torch.float32), (2, torch.bfloat16)]
    assert images.dtype == torch.float32 and 0 < (images - plain).abs().max() < 2e-3


def test_what_has_no_fast_form():
    for options in ({"precision": "bfloat16"}, {"compile": True}):
        with pytest.raises(UserError) as caught:
            accelerate(Tinted(), **options)
        assert str(caught.value) == "--precision and --compile: a Tinted has no fast form"
    with pytest.raises(UserError, match="CUDA devices only, found"):
        accelerate(FlowGenerator(make_flow(), Identity(8, 2), 0.0), compile=True)
    with pytest.raises(UserError) as caught:
        accelerate(FlowGenerator(CouplingFlow(2, 2, 8, 1), Identity(1, 2), 0.0), compile=True)
    assert str(caught.value) == "--compile: the inverse of a CouplingFlow cannot be compiled"


@pytest.mark.parametrize(
    "make_one",
    [
        partial(make_compilable, cls=OnePassGenerator),
        partial(make_compilable, cls=TwoPassGenerator, per_group=True),
        partial(make_velocity, cls=AverageVelocityGenerator),
    ],
    ids=["one pass", "two passes per group", "average velocity"],
)
def test_a_compiled_network_is_the_network_for_every_batch_size(make_one, monkeypatch):
    """The graph that torch.compile takes, run without generated code, whose compilation takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (make_one() for _ in range(2))
    accelerate(compiled, compile=True)
    for labels in (torch.tensor([0, 1, 2]), torch.tensor([2])):
        one, other = (generator.sample(labels, 0, guidance=1.5, decode=False) for generator in (plain, compiled))
        assert one.std() > 0.1 and (one - other).abs().max() < 1e-5


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_code_on_a_cpu():
    def make():
        torch.manual_seed(0)
        backbone = GroupedMLP(1, 2, 8, 1, 1, 0)
        for parameter in backbone.parameters():
            nn.init.normal_(parameter, std=0.5)
        return OnePassGenerator(backbone.requires_grad_(False), Identity(1, 2))

    compiled = accelerate(make(), "bfloat16", compile=True)
    plain = make().sample(torch.zeros(3, dtype=torch.int64), seed=0, decode=False)
    samples = compiled.sample(torch.zeros(3, dtype=torch.int64), seed=0, decode=False)
    assert samples.dtype == torch.float32
    assert 1e-5 < (samples - plain).abs().max() < 0.1


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    def broken(*_):
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(UserError, match=r"--compile: torch\.compile failed: ."):
        draw(accelerate(make_compilable(OnePassGenerator), compile=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fast_forms_on_a_gpu(make, precision):
    labels = torch.tensor([0, 1, 2, 3, 1, 0, 2])
    plain = whole(make().cuda(), labels, 0, 1.5, 4, "cuda")
    fast = whole(accelerate(make().cuda(), precision, compile=True), labels, 0, 1.5, 4, "cuda")
    assert (fast - plain).norm() / plain.norm() < (1e-4 if precision == "float32" else 0.05)
