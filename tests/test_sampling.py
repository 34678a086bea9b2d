"""Labels to sample, batches that do not matter, and images written as grid, archive or folder."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.codecs.identity import Identity
from genflow.errors import UserError
from genflow.generator import Generator
from genflow.images import save_grid, save_png, to_uint8
from genflow.sampling import check_out, choose_labels, sample_images, write_images


class Tinted(Generator):
    """Noise, brighter with the class and the scale."""

    def __init__(self, num_classes=3, broken=False):
        super().__init__(torch.nn.Identity(), Identity(2, 1), (1, 2, 2), num_classes, default_guidance=0.5)
        self.broken = broken

    def forward(self, noise, condition):
        shade = condition.labels.float() / 10 + condition.guidance
        return noise * (float("nan") if self.broken else 0.01) + shade.view(-1, 1, 1, 1)


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
        ((3, None, 0, None), "--num: found 0, expected at least 1"),
        ((3, None, None, -2), "--per-class: found -2, expected at least 1"),
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
    whole = sample_images(Tinted(), labels, 7, None, 64, "cpu")
    parts = sample_images(Tinted(), labels, 7, None, 2, "cpu", lambda *numbers: progress.append(numbers))
    assert whole.shape == (5, 1, 2, 2) and whole.equal(parts)
    assert progress == [(2, 5), (4, 5), (5, 5)]
    assert not whole.equal(sample_images(Tinted(), labels, 8, None, 64, "cpu"))
    assert whole.equal(sample_images(Tinted(), labels, 7, 0.5, 64, "cpu"))
    brighter = sample_images(Tinted(), labels, 7, 0.6, 64, "cpu")
    assert torch.allclose(brighter - whole, torch.tensor(0.1), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size: found 0, expected at least 1"),
        ({"guidance": float("nan")}, "--guidance: found nan, expected a finite number"),
        ({"guidance": float("-inf")}, "--guidance: found -inf, expected a finite number"),
        ({"generator": Tinted(broken=True)}, "the generator returned samples that are not finite among images 0 to 1"),
    ],
)
def test_sampling_refuses_what_gives_no_images(options, message):
    arguments = {"generator": Tinted(), "labels": torch.zeros(3, dtype=torch.int64), "seed": 0, "guidance": None}
    with pytest.raises(UserError) as caught:
        sample_images(**{**arguments, "batch_size": 2, "device": "cpu", **options})
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
