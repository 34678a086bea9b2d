"""Pictures that cannot be read: a line that stops, or others in their places and a list in the run folder."""

import json
import multiprocessing
import os
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import started
import torch
from PIL import Image

from genflow.config.recipe import dump_yaml
from genflow.data import ImageFolder
from genflow.data.skipped import list_skipped, read_skipped
from genflow.data.stream import build_loader
from genflow.errors import UserError

ROOT = Path(__file__).parents[2]
SIDE = 8
DAMAGED = ("a/1.png", "a/2.png", "b/3.png", "a/4.png", "b/0.png")


@pytest.fixture
def root(tmp_path):
    """Six pictures in each of two classes, of values 0 to 5 and 10 to 15, five of them damaged, each in its way."""
    for value in (*range(6), *range(10, 16)):
        file = tmp_path / "pictures" / "ab"[value // 10] / f"{value % 10}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (SIDE, SIDE), value).save(file)
    first, second, third, fourth, fifth = (tmp_path / "pictures" / name for name in DAMAGED)
    first.write_bytes(first.read_bytes()[:50])
    second.write_bytes(b"")
    third.write_text("no picture")
    Image.new("L", (1, 101)).save(fourth)
    fifth.unlink()
    os.mkfifo(fifth)
    return tmp_path / "pictures"


def values(dataset):
    return [int(dataset.read(index)[0, 0, 0]) for index in range(len(dataset))]


@pytest.fixture
def skipping(root):
    """The data set when the pipe was a picture still."""
    (root / "b" / "0.png").unlink()
    (root / "b" / "0.png").touch()
    dataset = ImageFolder(str(root), SIDE, channels=1, unreadable="skip")
    (root / "b" / "0.png").unlink()
    os.mkfifo(root / "b" / "0.png")
    return dataset


def test_the_next_readable_one_of_the_class_stands_in(skipping, tmp_path):
    expected = [0, 3, 3, 3, 5, 5, 11, 11, 12, 14, 14, 15]
    assert values(skipping) == expected == values(skipping)
    assert skipping.labels.tolist() == [0] * 6 + [1] * 6 and len(skipping) == 12
    skipping.skipped_file = tmp_path / "unreadable.txt"
    assert values(skipping) == expected == values(skipping)
    lines = read_skipped(tmp_path / "unreadable.txt")
    root = skipping.data_root
    assert [line.split(": ")[0] for line in lines] == [f"{root}/{name}" for name in sorted(DAMAGED)]
    assert lines[1] == f"{root}/a/2.png: not a readable picture: expected BMP, GIF, JPEG, PNG, PPM, TIFF or WebP"
    assert lines[3] == f"{root}/b/0.png: not a readable picture: found a pipe" and "found 1 x 101 pixels" in lines[2]


def test_the_last_of_a_class_is_followed_by_its_first(root):
    (root / "a" / "5.png").write_bytes(b"")
    assert values(ImageFolder(str(root), SIDE, unreadable="skip"))[:6] == [0, 3, 3, 3, 0, 0]


def test_stopping_names_the_first_and_a_class_without_any_too(root):
    with pytest.raises(UserError, match=r"a/1.png: not a readable picture: "):
        values(ImageFolder(str(root), SIDE))
    for file in (root / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"a/0.png: .*WebP; nor can those that follow it in its class be read"):
        ImageFolder(str(root), SIDE, unreadable="skip").read(0)


def test_mistakes_of_transforms_are_not_skipped(root):
    from genflow.data.transforms import Resize

    with pytest.raises(UserError, match=r"pipeline \[Resize\] makes 9 x 9"):
        ImageFolder(str(root), SIDE, pipeline=[Resize(9)], unreadable="skip")


def test_a_list_that_cannot_be_written_stops_with_a_line(skipping, tmp_path):
    skipping.skipped_file = tmp_path / "unreadable.txt"
    skipping.skipped_file.mkdir()
    with pytest.raises(UserError, match=r"/unreadable.txt: cannot be written: Is a directory"):
        values(skipping)


def _list_forty(file):
    for number in range(40):
        list_skipped(file, f"{number % 20}: \udcff {'x' * 200}")


def test_lines_are_listed_once_whoever_lists_them(tmp_path):
    file = tmp_path / "unreadable.txt"
    writers = [multiprocessing.get_context("fork").Process(target=_list_forty, args=(file,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    list_skipped(file, "last")
    lines = read_skipped(file)
    assert sorted(lines) == sorted({*(f"{number}: \\udcff {'x' * 200}" for number in range(20)), "last"})


def test_loader_processes_skip_alike(skipping, tmp_path):
    expected = [batch["images"] for batch in islice(build_loader(skipping, 4, seed=0), 6)]
    skipping.skipped_file = tmp_path / "unreadable.txt"
    found = [batch["images"] for batch in islice(build_loader(skipping, 4, seed=0, num_workers=2), 6)]
    assert all(map(torch.equal, found, expected))
    assert len(read_skipped(tmp_path / "unreadable.txt")) == len(DAMAGED)


# Training


def train(recipe, work_dir, *arguments, processes=1):
    command = [sys.executable, ROOT / "tools" / "train.py", recipe, "--work-dir", work_dir, *arguments]
    done = started.run(command, processes, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def recipe(root, tmp_path, tiny_recipe):
    """Three updates of eight pictures, read by two processes and changed by a transform of the user's own."""
    (root / "b" / "0.png").unlink()
    (root / "b" / "0.png").touch()
    (tmp_path / "dimming.py").write_text(
        "import random\n"
        "from mmcv.transforms import BaseTransform\n"
        "from genflow.registry import TRANSFORMS\n"
        "@TRANSFORMS.register_module()\n"
        "class Dimming(BaseTransform):\n"
        "    def transform(self, results):\n"
        "        results['img'] = (results['img'] * random.random()).astype('uint8')\n"
        "        return results\n"
    )
    tiny_recipe["custom_imports"] = ["dimming"]
    pipeline = [{"type": "ToGrey"}, {"type": "Dimming"}, {"type": "CenterCrop", "size": 8}, {"type": "Flip"}]
    data = {"type": "ImageFolder", "data_root": str(root), "image_size": 8, "channels": 1, "pipeline": pipeline}
    tiny_recipe["train_dataloader"] |= {"dataset": data | {"unreadable": "skip"}, "num_workers": 2}
    tiny_recipe["model"]["flow"]["num_classes"] = 2
    tiny_recipe["evaluation"] = None
    (tmp_path / "own.yaml").write_text(dump_yaml(tiny_recipe))
    return tmp_path / "own.yaml"


def losses(work_dir):
    return [json.loads(line)["loss"] for line in (work_dir / "scalars.jsonl").open()]


@pytest.mark.slow
def test_a_training_lists_what_it_skips_and_goes_on_the_same_with_two_processes(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said = train(recipe, whole)
    assert "5 files cannot be read, others of their classes stand in for them: " in said
    lines = sorted(read_skipped(whole / "unreadable.txt"))
    assert [line.split(": ")[0] for line in lines] == [f"{tmp_path}/pictures/{name}" for name in sorted(DAMAGED)]
    train(recipe, parts, "--cfg-options", "train_cfg.max_iters=1")
    train(recipe, parts, "--resume", "--cfg-options", "train_cfg.max_iters=3", processes=2)
    assert losses(parts)[0] == losses(whole)[0] and len(losses(whole)) == 3
    assert np.allclose(losses(parts), losses(whole), rtol=1e-5)
    assert sorted(read_skipped(parts / "unreadable.txt")) == lines
