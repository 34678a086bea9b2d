"""tools/prepare_data.py from end to end: folders, archives, latents, processes, kills, faults."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import started
import torch
from conftest import save_random_vae
from PIL import Image

from genflow.data import ImageFolder, LatentCache, PackedImages
from genflow.preparation.emoji import EmojiSource, half_of, read_list
from genflow.preparation.sources import unpacked

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "prepare_data.py")]
COUNT = 12


def prepare(*arguments, processes=1, **environment):
    environment = {**os.environ, **environment}
    return started.run([*TOOL, *arguments], processes, capture_output=True, text=True, env=environment)


def prepared(*arguments, **options):
    done = prepare(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "photos"
    for index in range(COUNT):
        (folder / "abc"[index % 3]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "abc"[index % 3] / f"{index:02d}.png")
    return folder


def same_files(ours, theirs):
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    for name in names:
        if name != "index.json":
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    own, others = (json.loads((folder / "index.json").read_text()) for folder in (ours, theirs))
    assert own == others


@pytest.mark.slow
def test_a_folder_and_its_archives_are_the_same_data(photos, tmp_path):
    said = prepared("images", photos, tmp_path / "packed", "--size", "8", "--shard-size", "5")
    assert said.splitlines()[0] == f"{tmp_path / 'packed'}: 12 pictures of 8 x 8 pixels, 3 classes"
    packed, folder = PackedImages(str(tmp_path / "packed"), 8), ImageFolder(str(photos), 8)
    indices = torch.arange(COUNT)
    assert torch.equal(packed.batch(indices, None)["images"], folder.batch(indices, None)["images"])
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(photos))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos, ".")
    for name in ("photos.zip", "photos.tar"):
        out = tmp_path / f"packed_{name}"
        prepared("images", tmp_path / name, out, "--size", "8", "--shard-size", "5", "--workers", "1")
        same_files(out, tmp_path / "packed")
    assert "all as the index says" in prepared("verify", tmp_path / "packed")
    for name in ("images_00000.npy", "labels_00001.npy"):
        (tmp_path / "packed" / name).write_bytes(b"x")
    done = prepare("verify", tmp_path / "packed")
    assert done.returncode == 2 and "images_00000" in done.stdout and "labels_00001" in done.stderr


def test_two_processes_share_the_work_and_write_the_same(photos, tmp_path):
    options = ("--size", "8", "--shard-size", "2")
    prepared("images", photos, tmp_path / "one", *options)
    said = prepared("images", photos, tmp_path / "two", *options, processes=2)
    assert said.count("in a recipe: ") == 1
    same_files(tmp_path / "two", tmp_path / "one")


def test_a_killed_call_goes_on(photos, tmp_path):
    options = ("--size", "256", "--shard-size", "1")
    prepared("images", photos, tmp_path / "whole", *options)
    process = started.Started([*TOOL, "images", str(photos), str(tmp_path / "killed"), *options])
    deadline = time.monotonic() + 100
    while not list((tmp_path / "killed").glob("shard_*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    prepared("images", photos, tmp_path / "killed", *options)
    same_files(tmp_path / "killed", tmp_path / "whole")


def test_unreadable_pictures_stop_or_are_left_out(refused, photos, tmp_path):
    odd = tmp_path / "odd"
    for path in photos.rglob("*.png"):
        (odd / path.parent.name).mkdir(parents=True, exist_ok=True)
        (odd / path.parent.name / path.name).write_bytes(path.read_bytes()[: None if "05" not in path.name else 100])
    line = refused("prepare_data", "images", odd, tmp_path / "out", "--size", "8")
    assert "05.png: not a readable picture: " in line and "--unreadable skip leaves such pictures out" in line
    said = prepared("images", odd, tmp_path / "skipped", "--size", "8", "--unreadable", "skip")
    assert "11 pictures" in said and "1 left out, " in said and "05.png" in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["images", "nowhere", "{out}", "--size", "8"], "data_root 'nowhere' is not a readable folder"),
        (["images", "{photos}", "{out}", "--size", "0"], "--size: found 0, expected 1 to 8,192"),
        (["images", "{photos}", "{out}", "--size", "8", "--shard-size", "0"], "--shard-size: found 0"),
        (["images", "{photos}", "{photos}", "--size", "8"], "holds other files"),
        (["images", "{photos}/a", "{out}", "--size", "8"], "'labels: none' trains without classes"),
        (["images", "cifar10", "{out}", "--size", "32", "--root", "nowhere"], "--download fetches it"),
        (["images", "{empty}.zip", "{out}", "--size", "8"], "not a readable archive"),
        (["images", "{empty}.tar", "{out}", "--size", "8"], "not a readable archive"),
        (["latents", "{photos}", "{out}", "--recipe", "{recipe}"], "Identity makes no latents"),
        (["verify", "{photos}"], "is no packed data set: there is no index.json"),
        (["emoji", "--font", "x.ttf", "--out", "{out}", "--emoji-test", "nowhere"], "nowhere: no such list of emoji"),
    ],
)
def test_faults_are_one_line(refused, photos, tmp_path, arguments, problem):
    for ending in (".zip", ".tar"):
        (tmp_path / f"empty{ending}").write_bytes(b"no archive")
    names = {"out": tmp_path / "out", "photos": photos, "empty": tmp_path / "empty"}
    names["recipe"] = ROOT / "recipes" / "pmf_digits.yaml"
    assert problem in refused("prepare_data", *(word.format(**names) for word in arguments))
    assert not (tmp_path / "out" / "index.json").exists()


def test_an_archive_cannot_leave_its_folder(refused, tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped.png"))
    assert "not a readable archive" in refused(
        "prepare_data", "images", tmp_path / "evil.tar", tmp_path / "a" / "b", "--size", "8"
    )
    assert not list(tmp_path.rglob("escaped.png"))
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        for name, kind in (("out", tarfile.SYMTYPE), ("pipe.png", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, str(tmp_path)
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("out/escaped.png"))
    with unpacked(tmp_path / "links.tar", tmp_path / "c") as folder:
        assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == ["out", "out/escaped.png"]
    assert not list(tmp_path.glob("escaped.png"))


def test_a_full_disk_is_one_line_and_what_is_there_is_gone_on_from(refused, photos, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    try:
        options = ("--size", "256", "--shard-size", "1")
        line = refused("prepare_data", "images", photos, disk / "out", *options)
        assert "cannot be written: No space left on device; disk" in line
        there = len(list((disk / "out").glob("shard_*.json")))
        assert 1 <= there < COUNT
        subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
        prepared("images", photos, disk / "out", *options)
        assert len(PackedImages(str(disk / "out"), 256)) == COUNT
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_latents_are_the_moments_of_both_views(photos, tmp_path):
    pytest.importorskip("diffusers")
    vae = save_random_vae(tmp_path / "vae")
    codec = f"components.codec={{type: SDVAE, image_size: 16, weights: {tmp_path / 'vae'}}}"
    recipe = ROOT / "recipes" / "meanflow_b2_imagenet.yaml"
    options = ("--recipe", recipe, "--cfg-options", codec, "model.backbone.image_size=8")
    said = prepared("latents", photos, tmp_path / "out", "--batch-size", "5", "--shard-size", "7", *options)
    assert "latent_shape: [4, 8, 8]" in said
    cache = LatentCache(str(tmp_path / "out"), (4, 8, 8))
    images = ImageFolder(str(photos), 16).batch(torch.arange(COUNT), None)["images"]
    with torch.no_grad():
        expected = vae.eval().encode(images.flip(3)).latent_dist
    found = torch.from_numpy(cache._moments.take(np.arange(COUNT), np.ones(COUNT, dtype=np.int64))).float()
    assert torch.allclose(found, torch.cat([expected.mean, expected.std], dim=1), atol=2e-3, rtol=2e-3)


LIST = """# group: Smileys
1F600 ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F ; fully-qualified # ☺️ E0.6 smiling face
263A ; unqualified          # ☺ E0.6 smiling face
# group: People
1F44B ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FB ; fully-qualified # 👋🏻 E1.0 waving hand: light skin tone
# group: Component
1F3FB ; component           # 🏻 E1.0 light skin tone
# group: Flags
1F1E6 1F1E8 ; fully-qualified # 🇦🇨 E2.0 flag: Ascension Island
"""


def test_emoji_without_tones_in_their_groups(tmp_path):
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    emoji, groups = read_list(tmp_path / "list.txt")
    names = ["grinning face", "smiling face", "waving hand", "flag: Ascension Island"]
    assert [entry.name for entry in emoji] == names and groups == ["Smileys", "People", "Flags"]

    def render(text):
        return None if text == "👋" else Image.new("RGBA", (136, 128), (255, 0, 0, 255))

    source = EmojiSource(emoji, groups, render, 32)
    assert source.missing == ["waving hand"] and source.labels.tolist() == [0, 0, 2]
    pixels = source.read(0)
    assert pixels.shape == (32, 32, 3) and pixels[0, 0].tolist() == [255] * 3 and pixels[16, 16].tolist() == [255, 0, 0]
    halves = {split: EmojiSource(emoji, groups, render, 32, split)._names for split in ("train", "test")}
    assert sorted(halves["train"] + halves["test"]) == sorted(set(names) - {"waving hand"})
    assert all(half_of(entry.text) == "train" for entry in emoji if entry.name in halves["train"])


def test_the_emoji_of_a_real_font(tmp_path):
    font, test_file = (
        Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
        Path("/usr/share/unicode/emoji/emoji-test.txt"),
    )
    if not (font.is_file() and test_file.is_file()):
        pytest.skip("needs the packages fonts-noto-color-emoji and unicode-data")
    said = prepared("emoji", "--font", font, "--out", tmp_path / "emoji", "--size", "16", "--split", "test")
    data = PackedImages(str(tmp_path / "emoji"), 16)
    assert 800 < len(data) < 1100 and data.num_classes == 9 and "Flags" in data.class_names, said
    images = data.batch(torch.arange(len(data)), None)["images"]
    assert float(images.std()) > 0.4 and len(images.unique(dim=0)) > 0.99 * len(data)
