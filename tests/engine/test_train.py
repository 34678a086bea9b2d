"""Training in process: divergence, the codec's weights, what a run folder holds, hooks of one's own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from PIL import Image

from genflow.codecs import SDVAE
from genflow.data.latent_files import write_latent_cache
from genflow.engine.distributed import first_node
from genflow.engine.loop import TrainingDiverged
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.generators.flow import FlowGenerator
from genflow.registry import HOOKS
from genflow.weights import read_checkpoint, read_weights

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = {
    "train_cfg.max_iters": 4,
    "train_dataloader.batch_size": 8,
    "default_hooks.samples.per_class": 1,
    "model.flow.width": 16,
    "model.flow.head_width": 8,
    "model.flow.blocks": 2,
    "model.flow.layers": 1,
    "evaluation": None,
}


def run_tiny(work_dir, **options):
    overrides = {**TINY, **{key.replace("__", "."): value for key, value in options.items()}}
    return train(RECIPES / "itarflow_digits.yaml", overrides, None, TrainOptions(work_dir))


def test_divergence_stops_before_the_update_and_keeps_the_last_good_state(tmp_path):
    work_dir = tmp_path / "run"
    message = r"update [2-4]: not finite: .*the state before it: .*step_0000000[1-3].pt"
    with pytest.raises(TrainingDiverged, match=message):
        run_tiny(
            work_dir,
            optim_wrapper__optimizer__lr=1e30,
            optim_wrapper__clip_grad_norm=None,
            model__flow__bound=None,
            param_scheduler=[],
        )
    assert not (work_dir / "generator.safetensors").exists()
    kept = sorted((work_dir / "checkpoints").glob("*.pt"))
    state = read_checkpoint(kept[-1])
    lines = (work_dir / "scalars.jsonl").read_text().splitlines()
    assert state["step"] == len(lines) == json.loads(lines[-1])["step"]


def test_exported_weights_are_the_first_average(tmp_path):
    work_dir = run_tiny(tmp_path / "run", ema={"fast": {"decay": 0.5}, "slow": {"decay": 0.9}})
    state = read_checkpoint(work_dir / "checkpoints" / "step_00000004.pt")
    for name, file in (("fast", "generator.safetensors"), ("slow", "generator-slow.safetensors")):
        weights = read_weights(work_dir / file)
        for key, value in state["averages"][name].items():
            assert torch.equal(weights[key.removeprefix("flow.")], value)
    assert not torch.equal(
        state["averages"]["fast"]["flow.flow_blocks.0.out.weight"],
        state["averages"]["slow"]["flow.flow_blocks.0.out.weight"],
    )


def test_average_that_forgets_at_once_is_the_weights_themselves(tmp_path):
    work_dir = run_tiny(tmp_path / "run", ema={"_": {"decay": 0.0}})
    state = read_checkpoint(work_dir / "checkpoints" / "step_00000004.pt")
    weights = read_weights(work_dir / "generator.safetensors")
    assert all(torch.equal(weights[key.removeprefix("flow.")], value) for key, value in state["model"].items())


def test_checkpoints_beyond_the_newest_are_removed(tmp_path):
    work_dir = run_tiny(tmp_path / "run", default_hooks__checkpoint={"interval": 1, "max_keep_ckpts": 2})
    names = sorted(path.name for path in (work_dir / "checkpoints").iterdir())
    assert names == ["step_00000003.pt", "step_00000004.pt"]


def test_micro_batches_and_bfloat16_train(tmp_path):
    whole, parts = run_tiny(tmp_path / "whole"), run_tiny(tmp_path / "parts", train_cfg__micro_batches=2)
    half = run_tiny(tmp_path / "half", optim_wrapper__precision="bfloat16")
    first = [json.loads((run / "scalars.jsonl").read_text().splitlines()[0]) for run in (whole, parts, half)]
    assert first[1] == pytest.approx(first[0], rel=1e-4)
    assert first[2]["loss"] == pytest.approx(first[0]["loss"], rel=0.02)
    assert first[2]["loss"] != first[0]["loss"]


def test_custom_hook_runs_every_update(tmp_path):
    seen = []

    @HOOKS.register_module(force=True)
    class CountingHook(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(outputs["loss"])

    run_tiny(tmp_path / "run", custom_hooks=[{"type": "CountingHook"}])
    assert len(seen) == 4


@pytest.fixture
def imagenet(tmp_path):
    """A toy latent cache and VAE for the ImageNet recipes: overrides that make these small."""
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
    )
    vae.save_pretrained(tmp_path / "vae")
    codec = SDVAE(8, str(tmp_path / "vae"))
    means = codec.latent_mean.numpy() + codec.latent_std.numpy() * np.random.default_rng(0).normal(size=(6, 2, 4, 4, 4))
    moments = np.concatenate([means, np.full_like(means, 0.1)], axis=2).astype(np.float32)
    write_latent_cache(tmp_path / "data" / "imagenet256_latents", moments, np.arange(6), codec.description)
    small = {
        "components.codec.image_size": 8,
        "components.codec.weights": str(tmp_path / "vae"),
        "train_dataloader.dataset.data_root": str(tmp_path / "data" / "imagenet256_latents"),
        "train_dataloader.dataset.latent_shape": [4, 4, 4],
        "train_dataloader.batch_size": 4,
        "train_dataloader.num_workers": 1,
        "train_cfg.max_iters": 2,
        "train_cfg.compile": False,
        "default_hooks.samples": {"per_class": 1, "classes": 2},
    }
    flow = {"image_size": 4, "width": 16, "head_width": 8, "blocks": 2, "layers": 1, "prefix_tokens": 2}
    backbone = {"image_size": 4, "width": 16, "heads": 2, "groups": 2, "layers": 1, "denoise_layers": 1}
    overrides = {**small, **{f"model.inverse.backbone.{key}": value for key, value in backbone.items()}}
    overrides["model.perceptual.crop"] = 16
    for term in ("lpips", "convnext"):
        encoder = {"type": "ConvNet", "channels": 3, "widths": [4, 8], "num_classes": 2}
        overrides[f"model.perceptual.terms.{term}.loss.loss.encoder"] = encoder
    for key, value in {**small, **{f"model.flow.{key}": value for key, value in flow.items()}}.items():
        overrides[f"prerequisites.teacher.recipe.{key}"] = value
    return overrides


def test_imagenet_recipes_train_on_a_latent_cache_and_decode_samples(imagenet, tmp_path):
    recipe = RECIPES / "biflow_b2_imagenet.yaml"
    work_dir = train(recipe, imagenet, None, TrainOptions(tmp_path / "runs" / "biflow"))
    lines = (work_dir / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert 0 < json.loads(lines[0])["perceptual_lpips"] <= 0.4  # through the decoder, weighted
    for run in (work_dir, work_dir.parent / "itarflow_b2_imagenet"):
        picture = Image.open(run / "samples" / "step_00000002.png")
        assert picture.mode == "RGB" and picture.width >= 64
    assert not any(name.startswith("codec") for name in read_weights(work_dir / "generator.safetensors"))


def test_codec_without_weights_is_told_before_training(imagenet, tmp_path):
    imagenet["components.codec.weights"] = None
    imagenet["components.codec.image_size"] = 32  # the published VAE shrinks by 8
    with pytest.raises(UserError, match=r"codec has no weights.*GENFLOW_SD_VAE"):
        train(RECIPES / "biflow_b2_imagenet.yaml", imagenet, None, TrainOptions(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_encoder_without_weights_is_told_before_training(imagenet, tmp_path):
    imagenet["model.perceptual.terms.convnext.loss.loss.encoder"] = {"type": "ConvNeXtV2", "variant": "atto"}
    message = r"the encoder ConvNeXtV2 has no weights.*model\.perceptual=null"
    with pytest.raises(UserError, match=message):
        train(RECIPES / "biflow_b2_imagenet.yaml", imagenet, None, TrainOptions(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_fetched_are_told_before_a_prerequisite_trains(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    encoder = "{encoder: {type: TimmFeatures, model: vit_tiny_patch16_224}, distance: {type: FrechetDistance}}"
    options = TrainOptions(tmp_path / "runs" / "run")
    with pytest.raises(UserError, match=r"the encoder TimmFeatures has no weights: model 'vit_tiny.*no network"):
        train(RECIPES / "pmf_digits_post.yaml", [f"model.distances.vit={encoder}"], None, options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim_wrapper__optimizer": {"type": "SGD", "lr": 0.1}}, "its optimizer is AdamW, not SGD"),
        ({"param_scheduler": []}, "it has 1 parameter schedulers, not 0"),
        ({"ema": {"other": {"decay": 0.9}}}, r"its averages are \['main'\], not \['other'\]"),
        ({"model__flow__width": 24}, "has shape"),
        ({"model__flow__blocks": 3}, "missing from the file"),
    ],
    ids=["optimizer", "schedulers", "averages", "width", "blocks"],
)
def test_resume_with_another_recipe_is_refused_and_touches_nothing(tmp_path, change, message):
    work_dir = run_tiny(tmp_path / "run")
    before = {path: path.read_bytes() for path in work_dir.rglob("*") if path.is_file()}
    overrides = {**TINY, **{key.replace("__", "."): value for key, value in change.items()}, "train_cfg.max_iters": 6}
    with pytest.raises(UserError, match=f"step_00000004.pt: does not continue this recipe: .*{message}"):
        train(RECIPES / "itarflow_digits.yaml", overrides, None, TrainOptions(work_dir, "auto"))
    assert {path: path.read_bytes() for path in work_dir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__flow__num_classes": 5}, "it has 10 classes, the model 5"),
        (
            {"model__flow__image_size": 4, "model__codec__image_size": 4},
            r"its images are \(1, 8, 8\), the model takes \(1, 4, 4\)",
        ),
        ({"model__codec__image_size": 4}, r"the codec's latents are \(1, 4, 4\), the flow takes \(1, 8, 8\)"),
    ],
    ids=["classes", "size", "codec"],
)
def test_model_that_does_not_fit_the_data_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run_tiny(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_mmengine_scheduler_steps_per_update(tmp_path):
    work_dir = run_tiny(tmp_path / "run", param_scheduler=[{"type": "MultiStepLR", "milestones": [2], "gamma": 0.1}])
    rates = [json.loads(line)["lr"] for line in (work_dir / "scalars.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-4, 2e-4])


def test_biflow_resumes_to_the_last_bit_within_the_warm_up_of_its_running_norm(tmp_path):
    teacher = {key: value for key, value in TINY.items() if key.startswith(("model", "train", "default", "eval"))}
    backbone = {"width": 16, "heads": 2, "groups": 2, "layers": 1}
    overrides = {
        **{f"prerequisites.teacher.recipe.{key}": value for key, value in teacher.items()},
        **{f"model.inverse.backbone.{key}": value for key, value in backbone.items()},
        "model.inverse.norm_warmup": 5,
        "train_dataloader.batch_size": 8,
        "train_cfg.max_iters": 7,
        "default_hooks.checkpoint": {"interval": 3, "max_keep_ckpts": 5},
        "default_hooks.samples.per_class": 1,
        "evaluation": None,
    }
    recipe = RECIPES / "biflow_digits.yaml"
    whole = train(recipe, overrides, None, TrainOptions(tmp_path / "whole"))
    start = whole / "checkpoints" / "step_00000003.pt"
    assert read_checkpoint(start)["model"]["inverse.trajectory_norm.updates"] == 3
    resumed = train(recipe, overrides, None, TrainOptions(tmp_path / "resumed", resume=str(start)))
    lines = [(run / "scalars.jsonl").read_text().splitlines() for run in (whole, resumed)]
    assert lines[1] == lines[0][3:] and len(lines[1]) == 4
    weights = [read_weights(run / "generator.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_resume_goes_on_with_the_rates_of_the_present_recipe(tmp_path):
    run_tiny(tmp_path / "run")
    longer = {**TINY, "train_cfg.max_iters": 8, "optim_wrapper.optimizer.lr": 1e-3, "param_scheduler.0.warmup_iters": 2}
    train(RECIPES / "itarflow_digits.yaml", longer, None, TrainOptions(tmp_path / "run", "auto"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "scalars.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    schedule = [1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(2, 6)]
    assert [line["lr"] for line in lines[4:]] == pytest.approx(schedule)


def test_resume_from_an_older_checkpoint_sets_later_ones_aside(tmp_path):
    options = {"default_hooks__checkpoint": {"interval": 1, "max_keep_ckpts": 3}}
    work_dir = run_tiny(tmp_path / "run", **options)
    overrides = {**TINY, "default_hooks.checkpoint": options["default_hooks__checkpoint"], "train_cfg.max_iters": 3}
    older = work_dir / "checkpoints" / "step_00000002.pt"
    train(RECIPES / "itarflow_digits.yaml", overrides, None, TrainOptions(work_dir, str(older)))
    names = sorted(path.name for path in (work_dir / "checkpoints").iterdir())
    assert names == [
        "abandoned_step_00000003.pt",
        "abandoned_step_00000004.pt",
        "step_00000002.pt",
        "step_00000003.pt",
    ]
    with pytest.raises(UserError, match=r"has done 3 updates, train_cfg\.max_iters is 1"):
        overrides["train_cfg.max_iters"] = 1
        train(RECIPES / "itarflow_digits.yaml", overrides, None, TrainOptions(work_dir, "auto"))


def test_run_folders_are_not_overwritten(tmp_path):
    first, second = run_tiny(tmp_path / "first"), run_tiny(tmp_path / "second")
    recipe, start = RECIPES / "itarflow_digits.yaml", first / "checkpoints" / "step_00000004.pt"
    with pytest.raises(UserError, match="holds another run than"):
        train(recipe, TINY, None, TrainOptions(second, str(start)))
    for path in (second / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="is finished and has no checkpoint"):
        train(recipe, TINY, None, TrainOptions(second, "auto"))
    (second / "generator.safetensors").unlink()  # as killed before the first checkpoint
    with pytest.raises(UserError, match="holds a run already"):
        train(recipe, TINY, None, TrainOptions(second))
    assert train(recipe, TINY, None, TrainOptions(second, "auto")) == second
    with pytest.raises(UserError, match="is that of another run too"):
        train(RECIPES / "biflow_digits.yaml", None, None, TrainOptions(tmp_path / "new" / "itarflow_digits"))


def test_samples_that_overflow_do_not_end_the_training(tmp_path, monkeypatch):
    def overflow(self, *arguments, **options):
        raise UserError("the generator returned samples that are not finite")

    monkeypatch.setattr(FlowGenerator, "sample", overflow)
    work_dir = run_tiny(tmp_path / "run", evaluation={"type": "DigitsEvaluator", "per_class": 1})
    assert (work_dir / "generator.safetensors").is_file() and not (work_dir / "samples").exists()
    log = next(work_dir.glob("*/*.log")).read_text()
    assert "no sample grid after 4 updates" in log and "not evaluated" in log


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("cpu1", "cpu1"), ("gpu[03-05,9],cpu1", "gpu03"), ("gpu-a01,gpu-b[01-02]", "gpu-a01"), ("n[7,9]", "n7")],
)
def test_first_node_of_a_slurm_list(nodes, first):
    assert first_node(nodes) == first
