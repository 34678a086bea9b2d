"""tools/edit.py as a user runs it, on a tiny BiFlow: the pictures it writes and the figures it prints."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.data import Digits
from genflow.evaluation import DigitsEvaluator
from genflow.evaluation.base import Evaluator
from genflow.inference.write_images import to_uint8

ROOT = Path(__file__).parents[2]


@pytest.fixture
def edit(biflow_run, here, monkeypatch, capfd):
    """Runs the tool in this process on the tiny run; returns what it prints."""

    def output(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/edit.py", str(biflow_run), *map(str, arguments), "--overwrite"])
        capfd.readouterr()
        runpy.run_path(str(ROOT / "tools" / "edit.py"), run_name="__main__")
        return capfd.readouterr().out

    return output


def pixels(images):
    return to_uint8(images).numpy()


def cells(path, rows, columns):
    """The images of a grid, back at 8 x 8 pixels: (rows, columns, 8, 8)."""
    picture = np.array(Image.open(path).convert("L"))
    step = (picture.shape[0] - 4) // rows  # 4 pixels of border around images enlarged 8 times
    assert step == 68 and picture.shape == (4 + 68 * rows, 4 + 68 * columns), picture.shape
    return np.stack(
        [
            np.stack([picture[4 + row * step :, 4 + column * step :][:64:8, :64:8] for column in range(columns)])
            for row in range(rows)
        ]
    )


def test_inpaint_images_of_the_recipe(edit):
    text = edit("inpaint", "--mask", "bottom", "--paste", "--num", 3, "--out", "x.png", "--out-images", "x.npz")
    assert text.startswith("3 images edited: x.png\n")
    before, masked, after, pasted = cells("x.png", 4, 3)
    digits = Digits("train")
    assert np.array_equal(before, pixels(digits.images[:3])[..., 0])
    assert np.array_equal(masked[:, :4], before[:, :4]) and (masked[:, 4:] == 128).all()
    assert np.array_equal(pasted[:, :4], before[:, :4]) and np.array_equal(pasted[:, 4:], after[:, 4:])
    saved = np.load("x.npz")
    assert np.array_equal(saved["images"][..., 0], pasted) and saved["labels"].tolist() == digits.labels[:3].tolist()
    error = float(re.search(r"known pixels before pasting: ([0-9.]+) of a range of 2", text)[1])
    difference = np.abs(after[:, :4].astype(float) - before[:, :4]).mean() / 127.5
    assert error == pytest.approx(difference, abs=0.005) and error > 0.05
    assert "share read as its own class: " in text


def test_class_edit_of_held_out_images(edit):
    held_out = ["--cfg-options", "train_dataloader.dataset.split=test"]
    text = edit("class-edit", "--from", 3, "--to", 8, "--num", 4, "--out", "x.png", "--out-images", "x", *held_out)
    before, after = cells("x.png", 2, 4)
    digits = Digits("test")
    assert np.array_equal(before, pixels(digits.images[digits.labels == 3][:4])[..., 0])
    files = sorted(Path("x").iterdir())
    assert [file.name for file in files] == [f"{index:06d}_class8.png" for index in range(4)]
    images = np.stack([np.array(Image.open(file)) for file in files])
    assert np.array_equal(images, after)
    accuracy = DigitsEvaluator().accuracy(torch.from_numpy(images)[:, None] / 127.5 - 1, torch.full((4,), 8))
    assert f"share read as class 8: {accuracy:.4f} (DigitsEvaluator)" in text


def test_edits_depend_on_seed_guidance_fill_and_labels_and_not_on_batches(edit):
    def images(*options):
        edit("inpaint", "--mask", "left", "--num", 5, "--out", "x.png", "--out-images", "x.npz", *options)
        return np.load("x.npz")["images"].astype(int)

    first = images()
    assert np.abs(images("--batch-size", 2) - first).max() <= 1
    for options in (["--seed", 1], ["--fill", "zero"], ["--labels", 7], ["--guidance", 0, 3], ["--labels", -1]):
        assert (images(*options) != first).any(), options
    assert np.abs(images("--guidance", 2) - images("--guidance", 2, 2)).max() <= 1


def test_files_are_edited_as_the_data_set_that_they_hold(edit):
    """Archives and named pictures bring their classes; plain ones take that of the options."""
    digits = Digits("train")
    three = digits.images[digits.labels == 3][:2]
    np.savez("three.npz", images=pixels(three), labels=np.array([3, 3]))
    Path("folder").mkdir()
    for index, image in enumerate(pixels(three)):
        Image.fromarray(image[..., 0]).convert("RGB").save(f"folder/{index}_class3.png")
        Image.fromarray(image[..., 0]).save(f"plain{index}.bmp")
    Image.fromarray(pixels(digits.images[digits.labels == 5])[0, ..., 0]).save("folder/2_class5.png")

    def images(*sources):
        edit("class-edit", *sources, "--from", 3, "--to", 8, "--out", "x.png", "--out-images", "x.npz")
        return np.load("x.npz")["images"].astype(int)

    expected = images("--num", 2)
    for sources in (["three.npz"], ["folder"], ["plain0.bmp", "plain1.bmp"], ["three.npz", "folder", "--num", 2]):
        assert np.abs(images(*sources) - expected).max() <= 3, sources  # 17 grey levels are rounded to 8 bits
    assert len(images("three.npz", "folder")) == 4
    before = Path("three.npz").read_bytes(), Path("plain0.bmp").read_bytes()
    text = edit("inpaint", "plain0.bmp", "plain1.bmp", "--labels", 3, 5, "--mask", "2,2,4,3", "--out", "y.png")
    assert text.startswith("2 images edited: y.png")
    assert before == (Path("three.npz").read_bytes(), Path("plain0.bmp").read_bytes())


@pytest.mark.parametrize(
    ("spec", "rows", "columns"),
    [
        ("2,1,3,4", slice(2, 5), slice(1, 5)),
        ("left", slice(0, 8), slice(0, 4)),
        ("right", slice(0, 8), slice(4, 8)),
        ("top", slice(0, 4), slice(0, 8)),
        ("center", slice(2, 6), slice(2, 6)),
        ("mask.png", slice(0, 1), slice(7, 8)),
    ],
)
def test_masks(edit, spec, rows, columns):
    known = np.full((8, 8), 255, dtype=np.uint8)
    known[rows, columns] = 0
    Image.fromarray(known).save("mask.png")
    edit("inpaint", "--mask", spec, "--num", 1, "--out", "x.png")
    _, masked, _ = cells("x.png", 3, 1)
    image = pixels(Digits("train").images[:1])[0, ..., 0]
    assert np.array_equal(masked[0], np.where(known == 255, image, 128))


def test_many_images_go_on_in_bands(edit):
    edit("inpaint", "--mask", "0,0,8,8", "--num", 18, "--out", "x.png")
    grid = cells("x.png", 6, 16)
    images = pixels(Digits("train").images[:18])[..., 0]
    assert np.array_equal(grid[0], images[:16]) and np.array_equal(grid[3, :2], images[16:])
    assert (grid[1] == 128).all() and (grid[3:, 2:] == 255).all()


def test_no_figures_without_known_pixels_or_classifier(edit):
    text = edit("inpaint", "--mask", "0,0,8,8", "--out", "x.png", "--cfg-options", "evaluation=null")
    assert text == "16 images edited: x.png\n"
    assert Evaluator().accuracy(torch.zeros(1, 1, 8, 8), torch.zeros(1)) is None


def test_classes_by_name_and_what_is_left_out_of_a_folder(edit):
    three = Digits("train").images[Digits("train").labels == 3][:2]
    Path("folder/inner").mkdir(parents=True)
    for index, image in enumerate(pixels(three)):
        Image.fromarray(image[..., 0]).save(f"folder/{index}_class3.PNG")
    for name in (".0_class3.png", "note.txt", "2_class3.jpg"):
        Path("folder", name).write_text("no picture")
    text = edit("class-edit", "folder", "--from", "name=3", "--to", "8", "--out", "x.png")
    assert text.startswith(
        "folder: 2 pictures; left out: 4 files or folders ('.0_class3.png')\n2 images edited: x.png\n"
    )
    assert edit("inpaint", "folder", "--mask", "left", "--labels", "number=3", "3", "--out", "x.png")


def test_pictures_of_other_modes_are_edited_as_they_look(edit):
    three = pixels(Digits("train").images[Digits("train").labels == 3][:1])[0, ..., 0]
    Image.fromarray(three.astype(np.uint16) * 257).save("deep_class3.png")
    turned = Image.Exif()
    turned[0x0112] = 3
    Image.fromarray(np.rot90(three, 2)).save("turned_class3.png", exif=turned)
    hidden = Image.fromarray(np.full((8, 8), 90, dtype=np.uint8)).convert("LA")
    hidden.putalpha(0)
    hidden.save("hidden_class3.png")
    edit("inpaint", "deep_class3.png", "turned_class3.png", "hidden_class3.png", "--mask", "left", "--out", "x.png")
    before, _, _ = cells("x.png", 3, 3)
    assert np.array_equal(before[0], three) and np.array_equal(before[1], three) and (before[2] == 255).all()
