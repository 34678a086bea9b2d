"""What a user or a stranger may give tools/edit.py: one line on stderr, exit code 2, nothing executed or written."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

INPAINT = ["inpaint", "--mask", "left", "--out", "x.png"]
CLASS_EDIT = ["class-edit", "--from", "3", "--to", "8", "--out", "x.png"]


class Payload:
    """Pickles as a call that creates the folder ``marker``."""

    def __reduce__(self):
        import os

        return os.mkdir, ("marker",)


def vast_array():
    """The start of an .npy file that says that it holds 2 ** 40 pictures."""
    with open("vast.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 1)}
        np.lib.format.write_array_header_2_0(file, header)
    return Path("vast.npy").read_bytes() + bytes(1000)


@pytest.fixture
def run(biflow_run, here):
    """A copy of the tiny BiFlow run in the working folder, and what the cases below name."""
    Image.new("L", (8, 8)).save("digit_class3.png")
    Image.new("L", (8, 8)).save("plain.png")
    Path("mine.png").write_text("mine")
    Image.new("L", (8, 8)).save("far_class10.png")
    Image.new("L", (8, 9)).save("tall_class3.png")
    Image.new("F", (8, 8)).save("deep_class3.tif")
    Image.new("1", (10_000, 9_000)).save("huge_class3.png")
    os.mkfifo("pipe_class3.png")
    os.mkfifo("pipe.npz")
    Path("text_class3.png").write_text("no picture")
    Path("cut_class3.png").write_bytes(Path("digit_class3.png").read_bytes()[:45])
    Path("empty").mkdir()
    images, labels = np.zeros((2, 8, 8, 1), dtype=np.uint8), np.array([3, 3])
    np.savez("good.npz", images=images, labels=labels)
    np.savez("nothing.npz", images=images[:0], labels=labels[:0])
    np.savez("float.npz", images=images.astype(float), labels=labels)
    np.savez("short.npz", images=images, labels=labels[:1])
    np.savez("colour.npz", images=images.repeat(3, axis=3), labels=labels)
    np.savez("pickled.npz", images=np.array([Payload()], dtype=object), labels=labels)
    np.savez("lacking.npz", images=images)
    Path("text.npz").write_text("no archive")
    np.savez("words.npz", images=np.array(["cat", "dog"]), labels=labels)
    for name, entries in {
        "raw.npz": {"images.npy": b"text", "labels.npy": b"text"},
        "bare.npz": {"images": b"text", "labels": b"text"},
        "vast.npz": {"images.npy": vast_array(), "labels.npy": b""},
    }.items():
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
    return Path(shutil.copytree(biflow_run, here / "run").name)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("6,0,3,2", "--mask: the box 6,0,3,2 does not lie inside images of 8 x 8 pixels"),
        ("0,9,1,1", "--mask: the box 0,9,1,1 does not lie inside images of 8 x 8 pixels"),
        ("1,1,0,4", "--mask: the box 1,1,0,4 does not lie inside images of 8 x 8 pixels"),
        (f"0,0,1,{10**30}", f"--mask: the box 0,0,1,{10**30} does not lie inside images of 8 x 8 pixels"),
        ("tall_class3.png", "tall_class3.png: found 9 x 8 pixels, expected 8 x 8"),
        ("text_class3.png", "text_class3.png: not a readable picture: expected BMP, GIF, JPEG, PNG"),
        ("0,0,4", "--mask: found '0,0,4', expected top,left,height,width, one of left, right, top, bottom, center, or"),
        ("botom", "--mask: found 'botom', expected top,left,height,width, one of left, right, top, bottom, center, or"),
    ],
)
def test_masks(refused, run, mask, message):
    line = refused("edit", run, *INPAINT, "--mask", mask)
    assert line.startswith(f"error: {message}")
    assert mask != "botom" or line.endswith("; nearest match: 'bottom'")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("digit_clas3.png", "digit_clas3.png: no such file or folder; nearest match: 'digit_class3.png'"),
        ("empty", "empty: this folder holds no .png files"),
        ("tall_class3.png", "tall_class3.png: found 9 x 8 pixels, expected 8 x 8"),
        (
            "deep_class3.tif",
            "deep_class3.tif: not a readable picture: found mode F, whose range is not known, expected",
        ),
        ("huge_class3.png", "huge_class3.png: not a readable picture: Image size (90000000 pixels) exceeds limit of "),
        ("pipe_class3.png", "pipe_class3.png: not a readable picture: found a pipe"),
        ("/dev/zero", "/dev/zero: not a readable picture: found a device"),
        ("text_class3.png", "text_class3.png: not a readable picture: expected BMP, GIF, JPEG, PNG"),
        ("cut_class3.png", "cut_class3.png: not a readable picture: "),
        ("text.npz", "text.npz: not an archive of images and labels: "),
        ("pickled.npz", "pickled.npz: images of shape (1,) and type object, expected (N, H, W, C) uint8"),
        ("words.npz", "words.npz: images of shape (2,) and type <U3, expected (N, H, W, C) uint8"),
        ("raw.npz", "raw.npz: not an archive of images and labels: "),
        (
            "bare.npz",
            "bare.npz: not an archive of images and labels: There is no item named 'images.npy' in the archive",
        ),
        ("vast.npz", "vast.npz: found 1099511627776 images, expected at most 1 GiB of them"),
        ("pipe.npz", "pipe.npz: not a readable archive: found a pipe"),
        ("lacking.npz", "lacking.npz: not an archive of images and labels: There is no item named 'labels.npy' in the"),
        ("nothing.npz", "nothing.npz: images of shape (0, 8, 8, 1) and type uint8, expected (N, H, W, C) uint8"),
        ("float.npz", "float.npz: images of shape (2, 8, 8, 1) and type float64, expected (N, H, W, C) uint8"),
        ("short.npz", "short.npz: labels of shape (1,) and type int64, expected (2,) integers"),
        ("colour.npz", "colour.npz: found images of 3 channels, expected 1"),
    ],
)
def test_images(refused, run, here, image, message):
    assert refused("edit", run, *INPAINT, "good.npz", image).startswith(f"error: {message}")
    assert refused("edit", run, *CLASS_EDIT, image).startswith(f"error: {message}")
    assert not (here / "marker").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*CLASS_EDIT, "--from", "10"], "--from: found 10, expected 0 to 9"),
        ([*CLASS_EDIT, "--to", "-1"], "--to: found -1, expected 0 to 9"),
        ([*CLASS_EDIT, "--to", "nine"], "--to: found nine, expected 0 to 9 or a class's name"),
        ([*CLASS_EDIT, "--from", "4", "digit_class3.png", "good.npz"], "none of the 3 pictures is of class 4"),
        ([*INPAINT, "--labels", "10"], "--labels: found 10, expected 0 to 9"),
        ([*INPAINT, "good.npz", "--labels", "1", "2", "3"], "--labels: found 3 classes for 2 images"),
        ([*INPAINT, "plain.png"], "--labels: missing, 1 of the pictures have no class in their name (_classN)"),
        ([*INPAINT, "far_class10.png"], "found an image of class 10, expected 0 to 9"),
        ([*INPAINT, "--guidance", "nan"], "--guidance: found nan, expected a finite number"),
        ([*INPAINT, "--guidance", "1", "inf"], "--guidance: found inf, expected a finite number"),
        ([*INPAINT, "--guidance", "-1"], "guidance: found -1.0, expected at least 0"),
        ([*CLASS_EDIT, "--guidance", "1", "2", "3"], "guidance: found 3 scales, expected 1 or 2"),
        ([*INPAINT, "--num", "0"], "--num: found 0, expected at least 1"),
        ([*INPAINT, "--batch-size", "-1"], "--batch-size: found -1, expected at least 1"),
        ([*INPAINT, "--average", "slow"], "run: no average 'slow' (there is: main, none)"),
        ([*INPAINT, "--out", "x.jpg"], "--out: found 'x.jpg', expected a name ending in .png"),
        ([*INPAINT, "--out", "x"], "--out: found 'x', expected a name ending in .png"),
        ([*INPAINT, "--out-images", "x.png"], "--out-images: found 'x.png', expected a name ending in .npz or a fold"),
        ([*INPAINT, "--out-images", "run/recipe"], "--out-images: 'run/recipe' is a file already"),
        ([*INPAINT, "plain.png", "--labels", "1", "--out", "./plain.png"], "--out: 'plain.png' holds what is to be ed"),
        ([*INPAINT, "--mask", "plain.png", "--out", "plain.png"], "--out: 'plain.png' holds what is to be edited"),
        ([*INPAINT, "good.npz", "--out-images", "good.npz"], "--out-images: 'good.npz' holds what is to be edited"),
        ([*INPAINT, "digit_class3.png", "--out-images", "../here"], "--out-images: '../here' holds what is to be edi"),
        ([*INPAINT, "--out", "mine.png"], "--out: 'mine.png' is there already; --overwrite replaces it"),
        ([*INPAINT, "--out-images", "good.npz"], "--out-images: 'good.npz' is there already; --overwrite replaces it"),
        (
            [*INPAINT, "--out-images", "run"],
            "--out-images: 'run' is there already and not empty; --overwrite replaces ",
        ),
        ([*INPAINT, "--cfg-options", "train_dataloader=null"], "run/recipe.yaml: train_dataloader: missing; name the "),
        (
            [*INPAINT, "--cfg-options", "train_dataloader.dataset.split=tests"],
            "run/recipe.yaml: train_dataloader.dataset.split: found 'tests', expected one of 'train', 'test'",
        ),
        (["inpaint", "--out", "x.png"], "the following arguments are required: --mask (--help shows an example)"),
        ([*CLASS_EDIT[:-2]], "the following arguments are required: --out (--help shows an example)"),
        ([*CLASS_EDIT, "--mask", "left"], "unrecognized arguments: --mask (--help shows an example)"),
        (["outpaint"], "argument edit: invalid choice: 'outpaint' (choose from 'inpaint', 'class-edit') (--help shows"),
    ],
)
def test_options(refused, run, arguments, message):
    if "run/recipe" in arguments:
        (run / "recipe").write_text("mine")
    assert refused("edit", run, *arguments).startswith(f"error: {message}")


def test_runs_that_cannot_edit(refused, run, finished_run, here):
    shutil.copytree(finished_run, here / "flow")
    line = "error: flow: a run of MaximumLikelihood has no teacher; editing needs a run of BiFlow"
    assert refused("edit", "flow", *INPAINT) == refused("edit", "flow", *CLASS_EDIT) == line
    assert refused("edit", "empty", *INPAINT).startswith("error: empty: not a finished run: recipe.yaml and generator")
    assert "rum: no such run folder; nearest match: 'run'" in refused("edit", "rum", *INPAINT)
    shutil.rmtree(run / "prerequisites")
    assert refused("edit", run, *INPAINT) == "error: run/prerequisites/teacher.safetensors: no such weights file"


def test_nothing_in_the_data_set_is_of_the_class(refused, run):
    Path("threes.py").write_text(
        "from genflow.data import Digits\n"
        "from genflow.registry import DATASETS\n\n\n"
        "@DATASETS.register_module()\n"
        "class Threes(Digits):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.labels.fill_(3)\n"
    )
    options = ["--cfg-options", "custom_imports=[threes]", "train_dataloader.dataset={type: Threes}"]
    assert refused("edit", run, *CLASS_EDIT, "--from", "4", *options) == "error: Threes has no image of class 4"
