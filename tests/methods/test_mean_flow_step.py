"""MeanFlow's step beyond test_mean_flow.py: its terms, what savings save, precision, parts, runs with an encoder."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.backbones import DiT
from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.codecs import Identity
from genflow.config.graph import ComponentGraph
from genflow.config.sections import TrainSection
from genflow.draws import Draws
from genflow.engine.layers import apply_layer_settings
from genflow.engine.loop import AutocastOptimWrapper, UpdateLoop
from genflow.engine.signals import StopRequest
from genflow.engine.train import TrainOptions, train
from genflow.engine.watchdog import Watchdog
from genflow.errors import UserError
from genflow.feature_encoders import ConvNet
from genflow.field_estimators import AverageVelocity
from genflow.generators.velocity import AverageVelocityGenerator
from genflow.guidance.fixed_mixture import FixedMixture
from genflow.guidance.interval import IntervalGuidance
from genflow.layers import tangents
from genflow.losses import AdaptiveWeighting, FeatureDistance, SquaredError
from genflow.methods.mean_flow import MeanFlow, SavingsSection
from genflow.methods.perceptual import PerceptualSection, PerceptualTerm
from genflow.runs.folder import RunFolder, open_run
from genflow.time_samplers import LogitNormalTimes
from genflow.weights import write_weights

ROOT = Path(__file__).parents[2]
CLASSES, BATCH = 3, 12
TOKENS = {"class_tokens": 1, "guidance_tokens": 1, "interval_tokens": 1, "time_tokens": 1}


def make_backbone(**options):
    sizes = {"channels": 1, "num_classes": CLASSES, "head_depth": 1, "auxiliary_depth": 1, **TOKENS}
    return PixelTransformer(4, 2, 16, 2, 2, **{**sizes, **options})


def make_dit():
    return DiT(4, 2, 16, depth=1, heads=2, channels=1, num_classes=CLASSES)


def make_perceptual():
    encoder = ConvNet(1, [4, 4], num_classes=2)
    terms = {"classifier": PerceptualTerm(AdaptiveWeighting(FeatureDistance(encoder)), 0.4)}
    return PerceptualSection(terms, crop=None)


def make_method(
    backbone=make_backbone, perceptual=True, savings=None, guidance=IntervalGuidance, checkpointing=False, **field
):
    """A method none of whose weights are zero; every other row has r = t, a third of the labels is lost."""
    torch.manual_seed(0)
    method = MeanFlow(
        backbone(),
        AverageVelocity(**field),
        LogitNormalTimes(0.4, 1.0),
        Identity(4, 1),
        AdaptiveWeighting(SquaredError()),
        guidance and guidance(label_drop=0.3),
        perceptual=make_perceptual() if perceptual else None,
        perceptual_max_time=0.6,
        savings=SavingsSection(**savings or {}),
    )
    for parameter in method.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    apply_layer_settings(method, TrainSection(1, checkpointing=checkpointing))
    return method


def batch_of(size=BATCH, dtype=torch.float32):
    draws = Draws(0, torch.arange(size, 2 * size), size)
    images = draws.normal("images", (1, 4, 4)).clamp(-1, 1).to(dtype)
    return {"images": images, "labels": torch.arange(size) % CLASSES, "draws": draws}


def terms_and_gradients(method, dtype=torch.float64, autocast=False):
    method = method.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = method(**batch_of(dtype=dtype))
    method.zero_grad()
    terms["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in method.trained_parameters().items()}
    return {name: term.item() for name, term in terms.items()}, gradients


# Savings


@pytest.fixture(scope="module")
def with_all_savings():
    return terms_and_gradients(make_method())


def test_terms(with_all_savings):
    terms, gradients = with_all_savings
    names = {"velocity", "auxiliary", "perceptual_classifier"}
    assert terms.keys() == names | {"loss", "velocity_error", "auxiliary_error"}
    assert terms["loss"] == pytest.approx(sum(terms[name] for name in names), rel=1e-6)
    # Adaptively weighted terms are about 1 for every row that they look at.
    times = LogitNormalTimes(0.4, 1.0)(batch_of()["draws"])
    early = (times.t < 0.6).float().mean().item()
    assert 0.2 < early < 0.8
    assert terms["perceptual_classifier"] == pytest.approx(0.4 * early, rel=0.1)
    assert terms["velocity"] == pytest.approx(1, abs=0.01) and terms["velocity_error"] > 0.1
    assert gradients.keys() == {f"backbone.{name}" for name, _ in make_backbone().named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {"savings": {"guidance": False, "heads": False, "perceptual": False}, "moving_rows_only": False},
        {"derivative": "with_graph"},
        {"derivative": "with_graph", "moving_rows_only": False},
    ],
    ids=str,
)
def test_the_plain_ways_give_the_same(options, with_all_savings):
    terms, gradients = terms_and_gradients(make_method(**options))
    assert terms == pytest.approx(with_all_savings[0], rel=1e-9)
    for name, gradient in with_all_savings[1].items():
        assert gradient.any() and (gradients[name] - gradient).abs().max() < 1e-8 * gradient.abs().max(), name


def rows_of(module, action):
    """The numbers of rows with which ``action`` calls a module."""
    rows = []
    handle = module.register_forward_hook(lambda _, arguments, output: rows.append(len(arguments[0])))
    action()
    handle.remove()
    return rows


def counted(monkeypatch, **options):
    """Rows that the layers of both heads see in a training step, and rows of tangents."""
    method, moving = make_method(**options), []
    original = tangents.attention_tangent

    def spy(q, *others):
        moving.append(len(q))
        return original(q, *others)

    monkeypatch.setattr(tangents, "attention_tangent", spy)
    rows = {
        name: rows_of(getattr(method.backbone, name).layers[0].attention.qkv, lambda: method(**batch_of()))
        for name in ("main", "auxiliary")
    }
    return rows, moving


def test_what_the_savings_save(monkeypatch):
    draws = batch_of()["draws"]
    times = LogitNormalTimes(0.4, 1.0)(draws)
    guidance = IntervalGuidance(label_drop=0.3)
    start, end = guidance.condition(draws, batch_of()["labels"], times).interval.unbind(1)
    guided = (start <= times.t) & (times.t <= end) & ~guidance.dropped(draws, times.equal)
    # Where r = t the trained pass has the velocity with class.
    needed = int((~times.equal).sum() + guided.sum())
    rows, moving = counted(monkeypatch)
    assert rows == {"main": [BATCH], "auxiliary": [needed, BATCH]} and needed < 2 * BATCH
    assert {*moving} == {BATCH // 2}
    rows, _ = counted(monkeypatch, savings={"guidance": False})
    assert rows == {"main": [BATCH], "auxiliary": [2 * BATCH, BATCH, BATCH]}
    rows, _ = counted(monkeypatch, savings={"heads": False})
    assert rows == {"main": [needed, BATCH], "auxiliary": [needed, BATCH]}
    _, moving = counted(monkeypatch, moving_rows_only=False)
    assert {*moving} == {BATCH}


def test_backbones_with_one_head_guide_by_it():
    """The velocity with class, scale and interval comes from the main head at r = t."""
    method = make_method(lambda: make_backbone(auxiliary_depth=None))
    calls, forward = [], method.backbone.forward

    def spy(x, condition, heads=("main",)):
        calls.append((condition.duration, heads))
        return forward(x, condition, heads)

    method.backbone.forward = spy
    terms = method(**batch_of())
    assert "auxiliary" not in terms and terms["loss"].isfinite()
    ((duration, heads),) = calls
    assert heads == ("main",) and not duration.any()


# Precision


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"savings": {"guidance": False, "heads": False}, "moving_rows_only": False},
        {"derivative": "central"},
        {"derivative": "with_graph"},
        {"guidance": None},
        {"backbone": make_dit},
        {"checkpointing": True},
    ],
    ids=["pairs", "without savings", "central", "with graph", "no guidance", "contract", "checkpointing"],
)
def test_under_autocast_every_weight_learns_nearly_the_same(options):
    """Casts of weights that were made without a graph must not serve passes with one, as older versions of torch do."""
    _, exact = terms_and_gradients(make_method(**options), torch.float32)
    terms, found = terms_and_gradients(make_method(**options), torch.float32, autocast=True)
    assert np.isfinite([*terms.values()]).all()
    for name, gradient in exact.items():
        assert found[name] is not None, name
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm(), name


# Division into parts


class Runner:
    """What the loop asks of its runner."""

    def __init__(self, model):
        self.model = model
        self.stop, self.watchdog = StopRequest(), Watchdog(600)
        self.optim_wrapper = AutocastOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), "float32", None)


def test_unequal_parts_make_the_same_update():
    """Twelve rows in one part and in five: laws that count rows are those of the whole."""
    results = []
    for parts in (1, 5):
        method = make_method().double()
        loop = UpdateLoop(Runner(method), torch.utils.data.DataLoader([0]), TrainSection(1, parts), seed=0)
        values = loop.update(batch_of(dtype=torch.float64))
        results.append((values, {name: value.detach() for name, value in method.trained_parameters().items()}))
    (expected, weights), (found, updated) = results
    assert found == pytest.approx(expected, rel=1e-5)
    before = make_method().double().trained_parameters()
    for name, value in weights.items():
        step = value - before[name]
        assert step.any() and (updated[name] - value).abs().max() < 1e-5 * step.abs().max(), name


# Guidance that does not fit


@pytest.mark.parametrize(("option", "name"), [("guidance_tokens", "guidance"), ("interval_tokens", "interval")])
def test_a_backbone_that_is_told_guidance_needs_one_that_tells(option, name):
    def make(guidance, **tokens):
        backbone = make_backbone(**{"guidance_tokens": 0, "interval_tokens": 0, **tokens})
        return MeanFlow(
            backbone, AverageVelocity(), LogitNormalTimes(0.0, 1.0), Identity(4, 1), SquaredError(), guidance
        )

    with pytest.raises(
        ValueError, match=f"the PixelTransformer takes {name} as input, which FixedMixture does not give"
    ):
        make(FixedMixture(1.0, 0.5), **{option: 1})
    for fitting in (make(FixedMixture(1.0, 0.5)), make(IntervalGuidance(), **{option: 1}), make(None, **{option: 1})):
        assert fitting(**batch_of())["loss"].isfinite()


def graph_of(recipe, **overrides):
    return ComponentGraph.load(ROOT / "recipes" / recipe, overrides)


@pytest.mark.parametrize(
    ("recipe", "guidance", "family"),
    [("pmf_digits", "TrainingTimeCFG", "VelocityGuidance"), ("biflow_digits", "IntervalGuidance", "ReverseGuidance")],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_guidance_of_another_family(recipe, guidance, family, by_name):
    node = {"type": guidance}
    overrides = {"components": {"g": node}, "model.guidance": "$g"} if by_name else {"model.guidance": node}
    with pytest.raises(UserError) as caught:
        graph_of(f"{recipe}.yaml", **overrides)
    place = "model.guidance" if by_name else "model.guidance.type"
    message = f"{place}: found '{guidance}', expected a {family}, another sort of guidance"
    assert str(caught.value).endswith(f"{recipe}.yaml: {message}")


# Artifacts

TINY = {
    "model.backbone.width": 16,
    "model.backbone.depth": 2,
    "model.backbone.head_depth": 1,
    "model.backbone.auxiliary_depth": 1,
    "train_dataloader.batch_size": 16,
    "train_cfg.max_iters": 2,
    "default_hooks.samples.per_class": 1,
    "optim_wrapper.precision": "bfloat16",
    "evaluation": None,
}
ENCODER = "prerequisites.encoder.recipe"
PERCEPTUAL = {
    "prerequisites": {"encoder": str(ROOT / "recipes" / "classifier_digits.yaml")},
    f"{ENCODER}.train_cfg.max_iters": 1,
    f"{ENCODER}.model.encoder.widths": [4, 4],
    "model.perceptual": {
        "crop": None,
        "terms": {"classifier": {"loss": {"type": "FeatureDistance", "encoder": "$encoder"}}},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with an auxiliary head and a perceptual term.

    The weights are random then, so that images depend on all that they can depend on; trained ones start at zero.
    """
    folder = tmp_path_factory.mktemp("mean_flow") / "run"
    train(ROOT / "recipes" / "pmf_digits.yaml", {**TINY, **PERCEPTUAL}, None, TrainOptions(folder))
    generator = torch.Generator().manual_seed(0)
    trained = open_run(folder)
    state = {name: 0.3 * torch.randn(old.shape, generator=generator) for name, old in trained.weights().items()}
    write_weights(trained.weights_file(), state)
    return folder


def test_artifact_holds_no_auxiliary_weights(run):
    state, graph = open_run(run).weights(), open_run(run).graph
    assert state and not any(name.startswith("auxiliary") for name in state)
    assert "auxiliary_depth" in graph.model.arguments["backbone"].arguments
    assert "auxiliary" in graph.build().backbone.heads  # as it was trained
    backbone = graph.build_artifact(state)
    assert backbone.heads == ("main",)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_run_samples_without_what_only_training_needs(run, monkeypatch):
    monkeypatch.setattr(RunFolder, "prerequisite_file", lambda *_: Path("not there"))
    generator = open_run(run).generator()
    assert isinstance(generator, AverageVelocityGenerator) and generator.network.heads == ("main",)
    assert not any(isinstance(module, ConvNet) for module in generator.modules())
    images = generator.sample(torch.arange(10), seed=0)
    assert images.shape == (10, 1, 8, 8) and images.isfinite().all()


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tools/sample.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools" / "sample.py"), run_name="__main__")


def test_steps_and_interval_of_the_tool(run, monkeypatch, tmp_path, capfd):
    """Each of them changes the pictures."""
    pictures = []
    for options in ([], ["--steps", 2], ["--interval", 0.4, 0.5], ["--guidance", 1.9]):
        out = tmp_path / f"{len(pictures)}.npz"
        run_tool(monkeypatch, run, "--per-class", 2, "--out", out, *options)
        assert f"20 images, {2 if '--steps' in options else 1} network evaluation(s) each" in capfd.readouterr().out
        with np.load(out) as archive:
            pictures.append(archive["images"])
    for one in range(4):
        assert all((pictures[one] != pictures[other]).any() for other in range(one))


def test_the_tool_refuses_guidance_below_one(run, monkeypatch, tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        run_tool(monkeypatch, run, "--num", 2, "--out", tmp_path / "grid.png", "--guidance", 0.9)
    assert stopped.value.code == 2 and "guidance: found 0.9, expected at least 1" in capfd.readouterr().err
    assert not (tmp_path / "grid.png").exists()
