"""MeanFlow: what is left out changes nothing, precision, families of guidance, artifacts, kill and resume."""

import json
import sys
from pathlib import Path

import pytest
import started
import torch

from genflow.config.graph import ComponentGraph
from genflow.draws import Draws
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.runs.folder import open_run
from genflow.weights import read_checkpoint, read_weights

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "pmf_digits.yaml"
TINY = [f"model.backbone.{option}" for option in ("width=16", "heads=2", "depth=2", "head_depth=1")]
TINY += ["model.backbone.auxiliary_depth=1"]
PERCEPTUAL = {
    "terms": {
        "features": {
            "loss": {
                "type": "AdaptiveWeighting",
                "loss": {
                    "type": "FeatureDistance",
                    "encoder": {"type": "ConvNet", "channels": 1, "widths": [4], "num_classes": 10},
                },
            },
            "weight": 0.4,
        }
    },
    "crop": 6,
}
BATCH = 12


def overrides(**more):
    options = dict(item.split("=") for item in TINY)
    return {**{key: int(value) for key, value in options.items()}, **more}


def build(**more):
    graph = ComponentGraph.load(RECIPE, overrides(**more))
    torch.manual_seed(0)
    method = graph.build()
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def batch():
    draws = Draws(0, torch.arange(BATCH), BATCH)
    return draws.uniform("images", (1, 8, 8)) * 2 - 1, torch.arange(BATCH) % 10, draws


def losses_and_gradients(method):
    terms = method(*batch())
    method.zero_grad()
    terms["loss"].backward()
    return terms, {name: value.grad.clone() for name, value in method.backbone.named_parameters()}


WITH_TERMS = {"model.perceptual": PERCEPTUAL, "model.perceptual_max_time": 0.6, "model.guidance.max_scale": 7.0}


@pytest.mark.parametrize(
    "switch",
    [
        "model.savings.guidance",
        "model.savings.heads",
        "model.savings.perceptual",
        "model.field.moving_rows_only",
    ],
)
def test_what_is_left_out_changes_nothing(switch):
    terms, gradients = losses_and_gradients(build(**WITH_TERMS))
    plain_terms, plain_gradients = losses_and_gradients(build(**WITH_TERMS, **{switch: False}))
    assert terms["perceptual_features"] > 0
    for name, value in plain_terms.items():
        assert value.item() == pytest.approx(terms[name].item(), rel=1e-5), name
    for name, value in plain_gradients.items():
        assert (value - gradients[name]).abs().max() <= 1e-5 * value.abs().max() + 1e-9, name
        assert value.any(), name


def test_how_it_samples_is_no_matter_of_training():
    """Without guidance the network is told the recipe's own interval, whatever is asked for when sampling."""
    unguided = {"model.guidance": None, "model.default_guidance": 1.0, "model.default_interval": [0.2, 0.6]}
    method, told = build(**unguided), []
    method.backbone.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1].interval))
    terms, gradients = losses_and_gradients(method)
    method.generator.set_sampling(steps=3, interval=(0.4, 0.5))
    again, gradients_again = losses_and_gradients(method)
    for name, value in terms.items():
        assert torch.equal(again[name], value), name
    for name, value in gradients.items():
        assert torch.equal(gradients_again[name], value), name
    method.generator.sample(torch.arange(2), seed=0)
    assert torch.allclose(told[-1], torch.tensor([[0.4, 0.5]]))
    other = build(**{**unguided, "model.default_interval": [0.4, 0.5]})  # which the network does look at
    assert losses_and_gradients(other)[0]["velocity_error"] != terms["velocity_error"]


def seen_rows(module):
    counts = []
    module.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    return counts


def test_perceptual_networks_see_early_rows_only():
    method = build(**WITH_TERMS)
    counts = seen_rows(method.perceptual.losses["features"].loss.encoder)
    method(*batch())
    early = int((method.times(batch()[2]).t < 0.6).sum())
    assert 0 < early < BATCH and counts == [early, early]
    none = build(**{**WITH_TERMS, "model.perceptual_max_time": 0.0})
    counts = seen_rows(none.perceptual.losses["features"].loss.encoder)
    assert none(*batch())["perceptual_features"] == 0 and counts == []


def test_guidance_asks_for_the_auxiliary_head_alone():
    method = build()
    asked = []
    method.backbone.register_forward_hook(lambda _, __, output: asked.append(tuple(output)))
    method(*batch())
    assert asked == [("auxiliary",)]


def test_bfloat16_gives_every_weight_nearly_its_gradient():
    method = build(**WITH_TERMS)
    _, exact = losses_and_gradients(method)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method(*batch())
    method.zero_grad()
    terms["loss"].backward()
    assert terms["loss"].dtype == torch.float32
    for name, value in method.backbone.named_parameters():
        # Autocast keeps casts of weights that guidance made without a graph; with those there would be no gradient.
        error = (value.grad - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.15, name


def test_without_guidance_samples_move_towards_the_data():
    method = build(**{"model.guidance": None})
    seen = {}
    directional = method.backbone.directional

    def watch(x, condition, direction, heads):
        seen.update(direction=direction, x=x)
        return directional(x, condition, direction, heads)

    method.backbone.directional = watch
    images, labels, draws = batch()
    method(images, labels, draws)
    times = method.times(draws)
    moving = ~times.equal
    noise = draws.normal("noise", (1, 8, 8))
    t = times.t.view(-1, 1, 1, 1)
    path = (t * (noise - images) / t.clamp(min=0.05))[moving]
    assert torch.allclose(seen["direction"], path, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model.guidance": {"type": "TrainingTimeCFG"}},
            "model.guidance.type: found 'TrainingTimeCFG', expected a VelocityGuidance, another sort of guidance",
        ),
        ({"model.default_guidance": 0.5}, "model: default_guidance is 0.5, 1 means no guidance and is the least"),
        (
            {"model.guidance": None, "model.default_guidance": 2.0},
            "model: default_guidance is 2.0, but no scale can be asked for",
        ),
        (
            {"model.codec.image_size": 16},
            "model: the codec's latents are (1, 16, 16), the backbone takes (1, 8, 8)",
        ),
        (
            {"model.field": {"type": "AverageVelocity", "prediction": "u", "preconditioner": "edm"}},
            "model.field: preconditioner edm is for prediction x, found prediction u",
        ),
    ],
)
def test_parts_that_do_not_fit_are_one_line(options, message):
    with pytest.raises(UserError) as caught:
        build(**options)
    assert str(caught.value) == f"{RECIPE}: {message}"


RUN = [
    *TINY,
    "train_dataloader.batch_size=8",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.checkpoint.max_keep_ckpts=9",
    "default_hooks.samples.per_class=1",
    "evaluation=null",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(RECIPE, [*RUN, "train_cfg.max_iters=4"], None, TrainOptions(folder))


def test_resume_is_exact_with_muon_and_three_averages(run, tmp_path):
    half = tmp_path / "half"
    train(RECIPE, [*RUN, "train_cfg.max_iters=4"], None, TrainOptions(half, str(run / "checkpoints/step_00000002.pt")))
    names = sorted(path.name for path in run.glob("*.safetensors"))
    assert len(names) == 4 and names == sorted(path.name for path in half.glob("*.safetensors"))
    for name in names:
        ours, expected = read_weights(half / name), read_weights(run / name)
        assert all(ours[key].equal(expected[key]) for key in expected)
    ours, expected = (read_checkpoint(folder / "checkpoints" / "step_00000004.pt") for folder in (half, run))
    assert ours["optimizer_type"] == "Muon" and len(ours["averages"]) == 3
    for index, state in expected["optimizer"]["state"].items():
        for key, value in state.items():
            same = ours["optimizer"]["state"][index][key]
            assert same.equal(value) if isinstance(value, torch.Tensor) else same == value


def test_micro_batches_do_not_change_an_update(run, tmp_path):
    parts = tmp_path / "parts"
    options = [*RUN, "train_cfg.max_iters=2", "train_cfg.micro_batches=2"]
    train(RECIPE, options, None, TrainOptions(parts))
    whole, split = (
        [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()] for folder in (run, parts)
    )
    for one, other in zip(whole[:2], split, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_a_run_keeps_what_samples_and_no_more(run):
    weights = read_weights(run / "generator.safetensors")
    assert not [name for name in weights if name.startswith("auxiliary")] and "main.output.weight" in weights
    trained = open_run(run)
    generator = trained.generator()
    assert generator.network.heads == ("main",)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["generator"]["generator_params"] == sum(value.numel() for value in weights.values())
    # As a prerequisite of another recipe, too.
    assert trained.graph.build_artifact(weights).heads == ("main",)


def test_tools_take_steps_and_interval(run, tmp_path):
    def sample(*more):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        command = [sys.executable, str(ROOT / "tools" / "sample.py"), str(run), "--num", "3", "--out", str(out)]
        return started.run([*command, *more], capture_output=True, text=True, check=False), out

    done, _ = sample("--steps", "2", "--guidance", "1.5", "--interval", "0.1", "0.9")
    assert done.returncode == 0 and "2 network evaluation(s) each" in done.stdout
    done, out = sample("--interval", "0.9", "0.1")
    assert done.returncode == 2 and not out.exists()
    assert done.stderr == "error: interval: found 0.9 0.1, expected two times with 0 <= start <= end <= 1\n"
