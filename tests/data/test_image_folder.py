"""Pictures in folders: their order, ADM's crop, the range of values, and what is refused in one line."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.data import ImageFolder
from genflow.data.pictures import center_crop
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.registry import DATASETS

SIDE = 4


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """Classes ``a`` and ``b``; the values of their pictures are 10, 20, 30."""
    for name, value in (("b/1.png", 30), ("a/2.PNG", 20), ("a/10.png", 10)):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (SIDE, SIDE), value).save(tmp_path / "train" / name)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "list.png").write_text("no class")
    return tmp_path / "train"


def read(root, **options):
    return ImageFolder(str(root), SIDE, **{"num_classes": 2, **options})


def test_registered_under_its_name(root):
    dataset = DATASETS.build({"type": "ImageFolder", "data_root": str(root), "image_size": SIDE, "num_classes": 2})
    assert isinstance(dataset, ImageFolder) and dataset.image_shape == (3, SIDE, SIDE)


def test_classes_and_pictures_are_in_the_order_of_their_names(root):
    dataset = read(root)
    assert len(dataset) == 3 and dataset.class_names == ["a", "b"]
    batch = dataset.batch(torch.tensor([2, 0, 1, 0]), None)
    assert batch["images"].shape == (4, 3, SIDE, SIDE) and batch["images"].dtype == torch.float32
    assert batch["labels"].tolist() == [1, 0, 0, 0] and batch["labels"].dtype == torch.int64
    expected = torch.tensor([30.0, 10.0, 20.0, 10.0]) / 127.5 - 1
    torch.testing.assert_close(batch["images"], expected.view(4, 1, 1, 1).expand(4, 3, SIDE, SIDE))
    with pytest.raises(IndexError):
        dataset.batch(torch.tensor([3]), None)


def test_channels_rows_and_columns_keep_their_places(root):
    pixels = noise(SIDE, SIDE)
    pixels[0, 0], pixels[0, 1] = 0, 255
    Image.fromarray(pixels).save(root / "a" / "0.png")
    image = read(root).batch(torch.tensor([0]), None)["images"][0]
    torch.testing.assert_close(image, torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
    assert (image.min(), image.max()) == (-1, 1)


def test_large_pictures_are_halved_by_averages():
    pixels = noise(4 * SIDE, 4 * SIDE)
    expected = pixels.astype(int)
    for _ in range(2):  # means of two columns, then of two rows, each rounded to a whole number
        expected = (expected[:, ::2] + expected[:, 1::2] + 1) // 2
        expected = (expected[::2] + expected[1::2] + 1) // 2
    assert np.array_equal(center_crop(Image.fromarray(pixels), SIDE), expected)
    # A side one pixel short of the double is resized at once, with weights that reach below 0.
    step = np.zeros((2 * SIDE - 1, 2 * SIDE - 1, 3), dtype=np.uint8) + 128
    step[:, SIDE:] = 192
    assert np.asarray(center_crop(Image.fromarray(step), SIDE)).min() < 128


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_is_cut_out(turned):
    pixels = noise(SIDE, SIDE + 5)
    expected = pixels[:, 2 : 2 + SIDE]
    if turned:
        pixels, expected = pixels.swapaxes(0, 1), expected.swapaxes(0, 1)
    assert np.array_equal(center_crop(Image.fromarray(np.ascontiguousarray(pixels)), SIDE), expected)


def test_small_pictures_grow():
    assert center_crop(Image.fromarray(noise(2, 3)), SIDE).size == (SIDE, SIDE)


def test_flip(root):
    Image.fromarray(noise(SIDE, SIDE)).save(root / "a" / "0.png")
    indices, draws = torch.zeros(40, dtype=torch.int64), Draws(0, torch.arange(40))
    plain = read(root).batch(indices, draws)["images"]
    assert plain.equal(plain[:1].expand_as(plain))
    mirrored = draws.uniform("flip") < 0.5
    found = read(root, flip=True).batch(indices, draws)["images"]
    assert 5 < mirrored.sum() < 35
    assert found[mirrored].equal(plain[mirrored].flip(3)) and found[~mirrored].equal(plain[~mirrored])
    assert read(root, flip=True).batch(indices, None)["images"].equal(plain)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_become_rgb(root, mode):
    Image.new(mode, (9, 6)).save(root / "a" / ("0.jpg" if mode == "CMYK" else "0.png"))
    assert read(root).batch(torch.tensor([0]), None)["images"].shape == (1, 3, SIDE, SIDE)


def test_folders_that_are_no_data_set(root):
    with pytest.raises(UserError) as caught:
        read(root / "none")
    assert str(caught.value) == f"data_root '{root}/none' is not a readable folder: No such file or directory"
    with pytest.raises(UserError, match="is not a readable folder: Not a directory"):
        read(root / "list.png")
    with pytest.raises(UserError) as caught:
        read(root, num_classes=1000)
    assert str(caught.value).startswith(f"data_root '{root}' has 2 folders of classes, the recipe has 1000; left out: ")
    (root / "c").mkdir()
    with pytest.raises(UserError) as caught:
        read(root, num_classes=3)
    assert str(caught.value) == (
        f"data_root '{root}' has 2 folders of classes, the recipe has 3; left out: 1 files ending in .txt "
        "('a/notes.txt'), 1 pictures beside the folders of classes ('list.png'), 1 folders without pictures ('c')"
    )


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "gone", "pipe"])
def test_pictures_that_cannot_be_read(root, damage):
    file = root / "a" / "0.jpg"
    Image.fromarray(noise(64, 64)).save(file)
    content = file.read_bytes()
    dataset = read(root)
    if damage in ("gone", "pipe"):  # after the folders were listed
        file.unlink()
    else:
        file.write_bytes({"truncated": content[: len(content) // 2], "text": b"no picture", "empty": b""}[damage])
    if damage == "pipe":
        os.mkfifo(file)
    with pytest.raises(UserError) as caught:
        dataset.batch(torch.tensor([1, 0]), None)
    message = str(caught.value)
    assert message.startswith(f"{file}: not a readable picture: ") and message.isprintable()


def test_a_picture_that_would_be_vast_when_resized_is_refused(root):
    Image.new("L", (101, 1)).save(root / "a" / "0.png")
    with pytest.raises(UserError) as caught:
        read(root).batch(torch.tensor([0]), None)
    expected = "found 101 x 1 pixels, expected no side over 100 times as long as the other"
    assert str(caught.value) == f"{root / 'a' / '0.png'}: {expected}"
    Image.new("L", (100, 1)).save(root / "a" / "0.png")
    assert read(root).batch(torch.tensor([0]), None)["images"].shape == (1, 3, SIDE, SIDE)


def test_random_crops_are_drawn_per_sample_and_only_for_training(root):
    Image.fromarray(noise(24, 40)).save(root / "a" / "0.png")
    dataset = read(root, crop_area=(0.2, 0.5))
    index = torch.zeros(2, dtype=torch.int64)
    draws = Draws(0, torch.tensor([5, 6]))
    crops = dataset.batch(index, draws)["images"]
    assert not torch.equal(crops[0], crops[1])
    assert torch.equal(dataset.batch(index[:1], draws[1:])["images"][0], crops[1])
    assert torch.equal(dataset.batch(index, None)["images"], read(root).batch(index, None)["images"])


def test_a_random_crop_shows_its_share_of_the_picture(root):
    # Columns rise evenly from left to right: a crop's range of values is the width of its box.
    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[:, None], (120, 120, 3))
    Image.fromarray(ramp).save(root / "a" / "0.png")
    dataset = ImageFolder(str(root), 60, num_classes=2, crop_area=(0.25, 0.25))
    index = torch.zeros(20, dtype=torch.int64)
    crops = dataset.batch(index, Draws(1, torch.arange(20)))["images"]
    heights = (crops.amax(dim=(1, 2, 3)) - crops.amin(dim=(1, 2, 3))) * 127.5 / 2
    # A quarter of the area is 60 x 60 at aspect 1; 52 to 69 rows at aspects 4/3 to 3/4.
    assert heights.min() > 49 and heights.max() < 70 and heights.max() - heights.min() > 5


def test_what_is_no_picture_of_a_class_shifts_no_label_and_is_counted(root):
    (root / ".cache").mkdir()
    Image.new("L", (SIDE, SIDE)).save(root / ".cache" / "0.png")
    (root / "0_empty").mkdir()
    (root / "aa" / "nested").mkdir(parents=True)
    for name in ("a/.0.png", "a/0.gif", "a/1.gif", "a/README"):
        (root / name).write_bytes(b"no picture")
    (root / "a" / "0.png").mkdir()
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "gone.png").symlink_to("nothing")
    dataset = read(root)
    assert dataset.class_names == ["a", "b"] and len(dataset) == 3
    assert dataset.batch(torch.arange(3), None)["labels"].tolist() == [0, 0, 1]
    assert dataset.left_out == {
        "pictures beside the folders of classes": (1, "list.png"),
        "hidden folders": (1, ".cache"),
        "folders without pictures": (2, "0_empty"),
        "links to nothing, pipes or devices": (2, "a/pipe.png"),
        "hidden files": (1, "a/.0.png"),
        "files ending in .gif": (2, "a/0.gif"),
        "files without an ending": (1, "a/README"),
        "files ending in .txt": (1, "a/notes.txt"),
    }
    (note,) = dataset.notes
    assert note.startswith(f"data_root '{root}': 3 pictures, 2 classes; left out: 1 hidden folders")
    assert "2 files ending in .gif ('a/0.gif')" in note


def test_nothing_is_said_of_what_is_not_there(root):
    (root / "list.png").unlink()
    (root / "a" / "notes.txt").unlink()
    assert read(root).notes == [f"data_root '{root}': 3 pictures, 2 classes"]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_from_colours_and_colours_from_grey(root, channels):
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(root / "a" / "0.png")
    dataset = read(root, channels=channels)
    assert dataset.image_shape == (channels, SIDE, SIDE)
    images = dataset.batch(torch.tensor([0, 1]), None)["images"]
    assert images.shape == (2, channels, SIDE, SIDE)
    red = torch.tensor([76.0] if channels == 1 else [255.0, 0.0, 0.0]) / 127.5 - 1
    torch.testing.assert_close(images[0], red.view(-1, 1, 1).expand(-1, SIDE, SIDE))
    assert images[1].allclose(torch.tensor(10 / 127.5 - 1))


def test_the_fingerprint_tells_other_pictures_and_names(root):
    first = read(root).fingerprint()
    assert first == read(root).fingerprint() and (first["samples"], first["classes"]) == (3, 2)
    (root / "b").rename(root / os.fsdecode(b"b\xff"))  # no valid text
    renamed = read(root).fingerprint()
    assert renamed["class_names"] != first["class_names"] and len(renamed["class_names"]) == 64
    Image.new("L", (SIDE, SIDE)).save(root / "a" / "3.png")
    assert read(root).fingerprint() == {**renamed, "samples": 4}


def test_a_folder_of_a_class_that_cannot_be_read(root, monkeypatch):
    scan = os.scandir

    def deny(folder):
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError) as caught:
        read(root)
    assert str(caught.value) == f"data_root '{root}': '{root}/b' is not a readable folder: Permission denied"
