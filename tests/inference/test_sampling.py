"""Labels to sample, batches that do not matter, and images written as grid, archive or folder."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from tinted_generator import Recording, Tinted, whole

from genflow.errors import UserError
from genflow.inference.sampling import choose_labels, sample_images
from genflow.inference.write_images import check_out, save_grid, save_png, to_uint8, write_images


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [
        ((3, None, 4, None), [0, 1, 2, 0]),
        ((3, [2, 0], 5, None), [2, 0, 2, 0, 2]),
        ((3, [1], None, None), [1] * 64),
        ((3, None, None, 2), [0, 0, 1, 1, 2, 2]),
        ((3, [2, 2, 0], None, 1), [2, 2, 0]),
        ((0, None, 2, None), [0, 0]),
        ((0, None, None, None), [0] * 64),
    ],
)
def test_choose_labels(arguments, labels):
    chosen = choose_labels(*arguments)
    assert chosen.tolist() == labels and chosen.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, [3], None, None), "--labels: found 3, expected 0 to 2"),
        ((3, [0, -1], 4, None), "--labels: found -1, expected 0 to 2"),
        ((3, None, 0, None), "--num: found 0, expected 1 to 10,000,000"),
        ((3, None, None, -2), "--per-class: found -2, expected 1 to 10,000,000"),
        ((3, None, 10**22, None), f"--num: found {10**22}, expected 1 to 10,000,000"),
        ((3, None, None, 4_000_000), "--per-class: found 4000000 of 3 classes, expected 10,000,000 in all"),
        ((3, None, 4, 2), "--num and --per-class exclude each other"),
        ((0, [0], None, None), "--labels and --per-class: the generator has no classes"),
        ((0, None, None, 3), "--labels and --per-class: the generator has no classes"),
    ],
)
def test_labels_that_the_generator_does_not_have(arguments, message):
    with pytest.raises(UserError) as caught:
        choose_labels(*arguments)
    assert str(caught.value) == message


def test_images_do_not_depend_on_the_batch():
    labels = torch.tensor([2, 0, 1, 1, 0])
    progress = []
    images = whole(Tinted(), labels, 7, None, 64, "cpu")
    parts = whole(Tinted(), labels, 7, None, 2, "cpu", progress=lambda *numbers: progress.append(numbers))
    assert images.shape == (5, 1, 2, 2) and images.equal(parts)
    assert progress == [(2, 5), (4, 5), (5, 5)]
    assert not images.equal(whole(Tinted(), labels, 8, None, 64, "cpu"))
    assert images.equal(whole(Tinted(), labels, 7, 0.5, 64, "cpu"))
    brighter = whole(Tinted(), labels, 7, 0.6, 64, "cpu")
    assert torch.allclose(brighter - images, torch.tensor(0.1), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size: found 0, expected at least 1"),
        ({"decode_batch": 0}, "--decode-batch: found 0, expected at least 1"),
        ({"guidance": float("nan")}, "--guidance: found nan, expected a finite number"),
        ({"guidance": float("-inf")}, "--guidance: found -inf, expected a finite number"),
        ({"generator": Tinted(broken=True)}, "the generator returned samples that are not finite among images 0 to 1"),
    ],
)
def test_sampling_refuses_what_gives_no_images(options, message):
    arguments = {"generator": Tinted(), "labels": torch.zeros(3, dtype=torch.int64), "seed": 0, "guidance": None}
    with pytest.raises(UserError) as caught:
        whole(**{**arguments, "batch_size": 2, "device": "cpu", **options})
    assert str(caught.value) == message


def test_to_uint8():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 1 / 255]).view(1, 1, 2, 3)
    assert to_uint8(values).tolist() == [[[[0], [0], [128]], [[255], [255], [128]]]]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_png_of_one_and_three_channels(tmp_path):
    for channels, mode in ((1, "L"), (3, "RGB")):
        image = torch.arange(2 * 3 * channels, dtype=torch.uint8).view(2, 3, channels)
        save_png(image, tmp_path / "deep" / "image.png")
        picture = Image.open(tmp_path / "deep" / "image.png")
        assert picture.mode == mode
        assert np.array(picture).reshape(2, 3, channels).tolist() == image.tolist()


def test_grid_has_its_images_in_rows(tmp_path):
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    save_grid(images, tmp_path / "grid.png", columns=3, smallest_side=4)  # each image is enlarged to 4 x 4
    picture = np.array(Image.open(tmp_path / "grid.png"))
    padding = 2
    assert picture.shape == (2 * (4 + padding) + padding, 3 * (4 + padding) + padding, 3)
    for index, shade in enumerate(to_uint8(images)[:, 0, 0, 0].tolist()):
        top, left = (padding + (4 + padding) * place for place in divmod(index, 3))
        assert (picture[top : top + 4, left : left + 4] == shade).all()
    assert (picture[:padding] == 255).all()


def test_images_are_written_in_three_forms(tmp_path):
    images = torch.linspace(-1, 1, 3 * 4).view(3, 1, 2, 2)
    labels = torch.tensor([1, 0, 12])
    write_images(images, labels, tmp_path / "grid.png", 2)
    assert Image.open(tmp_path / "grid.png").format == "PNG"
    write_images(images, labels, tmp_path / "sub" / "archive.npz", 2)
    with np.load(tmp_path / "sub" / "archive.npz") as archive:
        assert sorted(archive) == ["images", "labels"]
        assert archive["images"].dtype == np.uint8 and archive["images"].tolist() == to_uint8(images).tolist()
        assert archive["labels"].tolist() == [1, 0, 12]
    write_images(images, labels, tmp_path / "folder", 2)
    names = ["000000_class1.png", "000001_class0.png", "000002_class12.png"]
    assert sorted(os.listdir(tmp_path / "folder")) == names
    assert np.array(Image.open(tmp_path / "folder" / names[2])).tolist() == to_uint8(images)[2, ..., 0].tolist()
    assert sorted(os.listdir(tmp_path)) == ["folder", "grid.png", "sub"]  # no partial file is left


def test_bad_places_for_images(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("mine")
    for name, problem in (
        ("grid.jpg", f"found '{tmp_path / 'grid.jpg'}', expected a name ending in .png or .npz, or a folder"),
        ("folder.png", f"'{tmp_path / 'folder.png'}' is a folder already"),
        ("file", f"'{tmp_path / 'file'}' is a file already"),
    ):
        for use in (check_out, lambda path: write_images(torch.zeros(1, 1, 2, 2), torch.zeros(1), path, 1)):
            with pytest.raises(UserError) as caught:
                use(tmp_path / name)
            assert str(caught.value) == f"--out: {problem}"
    for name in ("new.png", "new.npz", "new", "sub/new.png"):
        check_out(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["grid.png", "archive.npz"])
def test_a_file_is_replaced_only_when_asked(tmp_path, name):
    out, images = tmp_path / name, torch.zeros(1, 1, 2, 2)
    out.write_text("mine")
    with pytest.raises(UserError) as caught:
        write_images(images, torch.zeros(1, dtype=torch.int64), out)
    assert str(caught.value) == f"--out: '{out}' is there already; --overwrite replaces it"
    assert out.read_text() == "mine"
    write_images(images, torch.zeros(1, dtype=torch.int64), out, overwrite=True)
    assert out.read_bytes()[:2] in (b"PK", b"\x89P")


def test_of_a_folder_our_own_pictures_alone_are_replaced(tmp_path):
    write_images(torch.zeros(3, 1, 2, 2), torch.tensor([5, 6, -1]), tmp_path)
    others = ["000000_class5.png.bak", "000000_class5.jpg", "00_class5.png", "holiday.png", "000001_classes.png"]
    for name in others:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="is there already and not empty; --overwrite replaces the pictures NNNNNN_"):
        write_images(torch.zeros(1, 1, 2, 2), torch.tensor([7]), tmp_path)
    write_images(torch.zeros(1, 1, 2, 2), torch.tensor([7]), tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "000000_class7.png"])
    assert all((tmp_path / name).read_text() == "mine" for name in others)


# Batches of one size, decoding in batches of its own, pictures as they come


def test_batches_are_of_one_size_and_the_last_is_cut():
    generator, sizes = Tinted(), []
    generator.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    labels = torch.arange(10) % 3
    parts = list(sample_images(generator, labels, 7, None, 4, "cpu"))
    assert sizes == [4, 4, 4] and [len(part) for part in parts] == [4, 4, 2]
    sizes.clear()
    evened = list(sample_images(generator, labels, 7, None, 9, "cpu"))
    assert sizes == [5, 5] and torch.equal(torch.cat(evened), torch.cat(parts))


def test_decoding_has_batches_of_its_own():
    generator, labels = Tinted(), torch.arange(7) % 3
    undecoded = whole(generator, labels, 7, None, 7, "cpu")
    generator.codec = Recording()
    images = whole(generator, labels, 7, None, 5, "cpu", decode_batch=3)
    assert [size for size, _ in generator.codec.seen] == [3, 1, 3]
    assert torch.equal(images, undecoded / 2) and not images.requires_grad


def test_pictures_are_written_as_their_batches_come(tmp_path):
    folder, there = tmp_path / "folder", []

    def batches():
        for shade in (-1.0, 0.0, 1.0):
            there.append(len(list(folder.glob("*.png"))))
            yield torch.full((2, 1, 2, 2), shade)

    labels = torch.zeros(6, dtype=torch.int64)
    write_images(batches(), labels, folder, 3)
    assert there == [0, 2, 4] and len(os.listdir(folder)) == 6
    for name in ("grid.png", "archive.npz"):
        write_images(batches(), labels, tmp_path / name, 3)
        write_images(torch.cat(list(batches())), labels, tmp_path / f"whole_{name}", 3)
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole_{name}").read_bytes()


# Fast forms
