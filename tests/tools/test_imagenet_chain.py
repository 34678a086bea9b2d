"""ImageNet's way in small: pictures as they come, latents killed half-way, three systems, samples, a sweep."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import started
import torch
from conftest import save_random_vae
from PIL import Image

from genflow.engine.train import TrainOptions, train
from genflow.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SIDE, CLASSES = 16, 10
COMMON = [
    "train_cfg.max_iters=3",
    "train_cfg.compile=false",
    "train_dataloader.batch_size=20",
    "train_dataloader.num_workers=0",
    "default_hooks.samples={per_class: 1, classes: 2}",
    "optim_wrapper.precision=float32",
]


def tool(name, *arguments, check=True):
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *arguments]
    return started.run(command, check=check, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """200 JPEGs in 10 folders with odd files among them, a VAE of random weights, and an extractor of such."""
    pytest.importorskip("diffusers")
    import timm

    place = tmp_path_factory.mktemp("imagenet")
    for index in range(200):
        folder = place / "train" / f"n{index % CLASSES:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(index)
        small = Image.fromarray(draws.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        mode = "L" if index == 11 else "CMYK" if index == 12 else "RGB"
        picture = small.resize((int(draws.integers(18, 40)), 24), Image.Resampling.BICUBIC).convert(mode)
        picture.save(folder / f"{folder.name}_{index}.{'JPEG' if index % 2 else 'jpg'}", format="JPEG")
    (place / "train" / "n00000000" / ".DS_Store").write_bytes(b"x")
    (place / "train" / "n00000001" / "notes.txt").write_text("x")
    (place / "train" / "README").write_text("x")
    save_random_vae(place / "vae")
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), place / "resnet.pt")
    return place


def codec(place, statistics=None):
    more = "" if statistics is None else f", latent_mean: {statistics[0]}, latent_std: {statistics[1]}"
    return f"components.codec={{type: SDVAE, image_size: {SIDE}, weights: {place / 'vae'}{more}}}"


@pytest.fixture(scope="module")
def latents(place):
    """The cache, whose making was killed and gone on with, and the override that names its codec."""
    options = ["latents", place / "train", place / "latents", "--recipe", RECIPES / "biflow_b2_imagenet.yaml"]
    options += ["--shard-size", "20", "--cfg-options", codec(place), "prerequisites.teacher.recipe." + codec(place)]
    command = [sys.executable, ROOT / "tools" / "prepare_data.py", *options]
    process = started.Started(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while len(list((place / "latents").glob("shard_*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    said = tool("prepare_data", *options)
    assert "200 pictures as latents of shape [4, 8, 8], 10 classes" in said
    assert "200 samples in 10 shard(s), all as the index says" in tool("prepare_data", "verify", place / "latents")
    moments = np.concatenate([np.load(file)[:, 0] for file in sorted((place / "latents").glob("latents_*.npy"))])
    means, deviations = np.split(moments.astype(np.float64), 2, axis=1)
    variances = means.var(axis=(0, 2, 3)) + np.square(deviations).mean(axis=(0, 2, 3))
    statistics = [means.mean(axis=(0, 2, 3)).tolist(), np.sqrt(variances).tolist()]
    return place / "latents", codec(place, statistics)


def use(latents, prefix=""):
    folder, own = latents
    dataset = f"{{type: LatentCache, data_root: {folder}, latent_shape: [4, 8, 8]}}"
    return [f"{prefix}{own}", f"{prefix}train_dataloader.dataset={dataset}"]


def measured(place):
    reference = f"{{type: ImageFolder, data_root: {place / 'train'}, image_size: {SIDE}}}"
    extractor = f"{{type: TimmFeatures, model: resnet10t, weights: {place / 'resnet.pt'}, image_size: 32}}"
    return (
        f"evaluation={{type: GenerationEvaluator, extractors: {{net: {extractor}}}, reference: {reference}, "
        "num_samples: 20, batch_size: 20}"
    )


def check(run):
    """It is whole, samples, and is measured at several scales."""
    assert RunFolder(run).is_complete and "fd" in RunFolder(run).metrics["evaluation"]["model"]
    names = RunFolder(run).metrics["class_names"]
    assert names[3] == "n00000003"
    tool("sample", run, "--labels", names[3], "--num", "2", "--out", run / "grid.png")
    assert "best fd: " in tool("evaluate", run, "--sweep", "guidance=1:2:1") and (run / "sweep.png").is_file()


def test_pmf_on_the_pictures_themselves(place, tmp_path):
    options = [
        f"components.codec={{type: Identity, image_size: {SIDE}, channels: 3}}",
        f"train_dataloader.dataset={{type: ImageFolder, data_root: {place / 'train'}, image_size: {SIDE}}}",
        *(f"model.backbone.{word}" for word in ("image_size=16", "patch_size=4", "width=32", "depth=2", "heads=2")),
        *(f"model.backbone.{word}" for word in ("head_depth=1", "auxiliary_depth=1", "bottleneck=16")),
        "model.backbone.num_classes=$data.num_classes",
        "model.perceptual=null",
        measured(place),
    ]
    check(train(RECIPES / "pmf_b16_imagenet256.yaml", [*COMMON, *options], options=TrainOptions(tmp_path / "run")))


@pytest.mark.slow
def test_biflow_on_latents(place, latents, tmp_path):
    teacher = "prerequisites.teacher.recipe."
    flow = ("image_size=8", "width=32", "head_width=16", "blocks=2", "layers=1", f"num_classes={CLASSES}")
    backbone = ("image_size=8", "width=32", "heads=2", "groups=2", "layers=1", f"num_classes={CLASSES}")
    options = [
        *use(latents),
        *use(latents, teacher),
        *(teacher + word for word in COMMON),
        *(f"{teacher}model.flow.{word}" for word in flow),
        *(f"model.inverse.backbone.{word}" for word in backbone),
        "model.perceptual=null",
        measured(place),
    ]
    check(train(RECIPES / "biflow_b2_imagenet.yaml", [*COMMON, *options], options=TrainOptions(tmp_path / "run")))


@pytest.mark.slow
def test_drifting_on_latents(place, latents, tmp_path):
    encoder = "prerequisites.encoder.recipe."
    backbone = ("image_size=8", "width=32", "depth=1", "heads=2", f"num_classes={CLASSES}")
    network = ("image_size=8", "width=8", "depths=[1, 1]", "norm_groups=4", f"num_classes={CLASSES}")
    options = [
        *use(latents),
        *use(latents, encoder),
        *(encoder + word for word in COMMON),
        *(f"{encoder}model.encoder.{word}" for word in network),
        *(f"model.backbone.{word}" for word in backbone),
        "model.labels_per_update=4",
        "model.samples_per_label=4",
        "model.positives=4",
        "model.guidance.negatives=2",
        "model.queue={per_class: 8, overall: 16, resume: refill, refill_updates: 2}",
        measured(place),
    ]
    check(train(RECIPES / "drift_b2_imagenet.yaml", [*COMMON, *options], options=TrainOptions(tmp_path / "run")))
