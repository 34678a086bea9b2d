"""Transforms: ours against their definitions, mmcv's and others exact for any number of processes, mistakes."""

import random
from itertools import islice

import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform, Compose, RandomApply, RandomFlip
from PIL import Image

from genflow.config.graph import ComponentGraph
from genflow.data import ImageFolder
from genflow.data.pictures import read_pixels
from genflow.data.stream import build_loader
from genflow.data.transforms import CenterCrop, Flip, RandomBox, Resize, ToGrey
from genflow.draws import Draws
from genflow.errors import UserError

SIDE = 8


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height, width):
    """Smooth colours with an edge."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(columns / 17 + phase) * np.cos(rows / 23) for phase in range(3)]
    pixels = 127 + 100 * np.stack(waves, axis=-1)
    pixels[height // 3 :, width // 2 :] -= 60
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    for number in range(6):
        file = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(11 + number, 20 - number, number)).save(file)
    return tmp_path / "pictures"


def one(index=3, seed=0):
    return Draws(seed, torch.tensor([index]))


def apply(transform, pixels, draws=None):
    return transform({"img": pixels, "img_path": "x.png", "gt_label": 0, "draws": draws})["img"]


def adm_crop(picture, image_size):
    """guided-diffusion's ``center_crop_arr`` (Dhariwal and Nichol, arXiv 2105.05233), step by step."""
    while min(*picture.size) >= 2 * image_size:
        picture = picture.resize(tuple(side // 2 for side in picture.size), resample=Image.Resampling.BOX)
    scale = image_size / min(*picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), resample=Image.Resampling.BICUBIC)
    array = np.array(picture)
    top, left = (array.shape[0] - image_size) // 2, (array.shape[1] - image_size) // 2
    return array[top : top + image_size, left : left + image_size]


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (130, 900), (64, 64), (20, 31), (257, 255)])
@pytest.mark.parametrize("size", [32, 64, 256])
def test_the_crop_is_adms_to_the_last_bit_through_a_jpeg_and_mmcv(tmp_path, shape, size):
    file = tmp_path / "x.jpg"
    Image.fromarray(photograph(*shape)).save(file, quality=90)
    expected = adm_crop(Image.open(file).convert("RGB"), size)
    found = apply(CenterCrop(size), read_pixels(file))
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_mmcv_and_pillow_decode_alike_and_red_is_first(tmp_path):
    Image.fromarray(photograph(40, 60)).save(tmp_path / "x.jpg")
    pixels = read_pixels(tmp_path / "x.jpg")
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "x.jpg")))
    assert not np.array_equal(pixels, mmcv.imread(tmp_path / "x.jpg"))  # its default is blue first


def test_resize_shrinks_with_antialiasing():
    lines = np.zeros((64, 64, 3), dtype=np.uint8)
    lines[:, ::8] = 240
    found = apply(Resize(SIDE), lines)
    assert found.shape == (SIDE, SIDE, 3) and abs(found.mean() - lines.mean()) < 2 and found.std() < 6
    assert apply(Resize(SIDE), noise(3, 5)).shape == (SIDE, SIDE, 3)


def test_grey_is_luma_of_one_channel_and_later_transforms_take_it():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    grey = apply(ToGrey(), colours)
    assert grey.shape == (1, 3, 1) and grey[0, :, 0].tolist() == [76, 150, 29]
    assert apply(ToGrey(), grey).tolist() == grey.tolist()
    assert apply(Flip(1.0), grey, one())[0, :, 0].tolist() == [29, 150, 76]
    for transform in (CenterCrop(SIDE), Resize(SIDE), RandomBox(SIDE)):
        assert apply(transform, grey, one()).shape == (SIDE, SIDE, 1)


def test_flip_mirrors_its_share_and_nothing_without_draws():
    pixels = noise(4, 5)
    mirrored = [np.array_equal(apply(Flip(0.25), pixels, one(n)), pixels[:, ::-1]) for n in range(400)]
    assert mirrored == (Draws(0, torch.arange(400)).uniform("flip") < 0.25).tolist() and 60 < sum(mirrored) < 140
    assert all(np.array_equal(apply(Flip(1.0), pixels), pixels) for _ in range(4))


def test_a_random_box_is_a_function_of_its_draws_and_the_middle_without():
    pixels = photograph(60, 90)
    crops = [apply(RandomBox(SIDE, (0.1, 0.3)), pixels, one(n)) for n in (1, 2, 1)]
    assert np.array_equal(crops[0], crops[2]) and not np.array_equal(crops[0], crops[1])
    assert np.array_equal(apply(RandomBox(SIDE), pixels), apply(CenterCrop(SIDE), pixels))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pipeline_written_out_is_the_one_of_flip_and_crop_area(root, channels):
    short = ImageFolder(str(root), SIDE, flip=True, crop_area=(0.3, 0.9), channels=channels)
    grey = [ToGrey()] if channels == 1 else []
    own = [*grey, RandomBox(SIDE, (0.3, 0.9)), Flip()]
    long = ImageFolder(str(root), SIDE, pipeline=own, channels=channels)
    for draws in (None, Draws(3, torch.arange(6), 6)):
        assert short.batch(torch.arange(6), draws)["images"].equal(long.batch(torch.arange(6), draws)["images"])


class Jitter(BaseTransform):
    """Noise from all three global generators."""

    def transform(self, results):
        shift = random.random() + np.random.rand() + float(torch.rand(()))
        results["img"] = (results["img"] * (shift / 3)).astype(np.uint8)
        return results


def jittered(root, **options):
    pipeline = [RandomApply([Jitter()], prob=0.7), RandomFlip(prob=0.5), CenterCrop(SIDE)]
    return build_loader(ImageFolder(str(root), SIDE, pipeline=pipeline), 4, seed=5, **options)


def test_transforms_of_others_are_exact_for_any_number_of_workers_and_processes(root):
    expected = [batch["images"] for batch in islice(jittered(root), 4)]
    assert len({images.sum().item() for images in expected}) == 4
    for workers in (1, 2):
        found = [batch["images"] for batch in islice(jittered(root, num_workers=workers), 4)]
        assert all(map(torch.equal, found, expected))
    halves = [list(islice(jittered(root, rank=rank, world_size=2), 4)) for rank in (0, 1)]
    joined = [torch.cat([left["images"], right["images"]]) for left, right in zip(*halves, strict=True)]
    assert all(map(torch.equal, joined, expected))
    resumed = [batch["images"] for batch in islice(jittered(root, start_step=2), 2)]
    assert all(map(torch.equal, resumed, expected[2:]))


def test_the_global_generators_are_left_as_they_were(root):
    dataset = ImageFolder(str(root), SIDE, pipeline=[Jitter(), CenterCrop(SIDE)])
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, second = (dataset.batch(torch.arange(3), None)["images"] for _ in range(2))
    assert first.equal(second)  # without draws the index is the seed
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.get_rng_state().equal(before[2])
    (root / "a" / "2.png").write_bytes((root / "a" / "0.png").read_bytes())
    assert not np.array_equal(dataset.read(0), dataset.read(1))
    seeds = [dataset.batch(torch.arange(3), Draws(seed, torch.arange(3)))["images"] for seed in (0, 1)]
    assert not seeds[0].equal(seeds[1])


# Mistakes


class Failing(BaseTransform):
    def transform(self, results):
        raise ValueError("no such thing")


class Forgetful(BaseTransform):
    def transform(self, results):
        return None


class Floats(BaseTransform):
    def transform(self, results):
        results["img"] = results["img"] / 2
        return results


@pytest.mark.parametrize(
    ("pipeline", "channels", "problem"),
    [
        ([], 3, "pipeline [] makes 11 x 20 x 3 uint8, expected 8 x 8 x 3 uint8"),
        ([CenterCrop(9), Flip()], 3, "pipeline [CenterCrop, Flip] makes 9 x 9 x 3 uint8, expected 8 x 8 x 3 uint8"),
        ([CenterCrop(8)], 1, "makes 8 x 8 x 3 uint8, expected 8 x 8 x 1 uint8; ToGrey makes one channel"),
        ([CenterCrop(8), ToGrey()], 3, "makes 8 x 8 x 1 uint8, expected 8 x 8 x 3 uint8"),
        ([CenterCrop(8), Floats()], 3, "makes 8 x 8 x 3 float64, expected 8 x 8 x 3 uint8"),
        ([CenterCrop(8), Failing()], 3, "pipeline.1: Failing: no such thing"),
        ([Compose([CenterCrop(8), Failing()])], 3, "pipeline.0: Compose: no such thing"),
        ([Forgetful()], 3, "pipeline.0: Forgetful: TypeError"),
    ],
)
def test_pipelines_that_make_something_else_are_one_line_before_training(root, pipeline, channels, problem):
    with pytest.raises(UserError) as caught:
        ImageFolder(str(root), SIDE, pipeline=pipeline, channels=channels)
    assert str(caught.value).startswith(f"{root}/a/0.png: ") and problem in str(caught.value)


@pytest.mark.parametrize("option", [{"flip": True}, {"crop_area": (0.2, 1.0)}])
def test_a_pipeline_and_the_short_words_for_one(root, option):
    (name,) = option
    with pytest.raises(UserError, match=f"^{name}: found together with pipeline, expected one of them"):
        ImageFolder(str(root), SIDE, pipeline=[CenterCrop(SIDE)], **option)


def recipe_with(tiny_file, root, pipeline):
    data = f"{{type: ImageFolder, data_root: {root}, image_size: 8, channels: 1, pipeline: {pipeline}}}"
    return ComponentGraph.load(tiny_file, [f"train_dataloader.dataset={data}"])


def test_a_recipe_names_transforms_of_both_and_nests_them(root, tiny_file):
    nested = "{type: RandomApply, prob: 0.5, transforms: [{type: RandomFlip, prob: 1}, {type: Flip, share: 0.1}]}"
    choice = "{type: RandomChoice, transforms: [[{type: Resize, size: 8}], {type: RandomBox, size: 8}]}"
    graph = recipe_with(tiny_file, root, f"[{{type: ToGrey}}, {nested}, {choice}]")
    dataset = graph.section("train_dataloader").dataset
    assert [type(transform).__name__ for transform in dataset.pipeline.transforms] == [
        "ToGrey",
        "RandomApply",
        "RandomChoice",
    ]
    inner = list(dataset.pipeline.transforms[1])
    assert type(inner[0]) is RandomFlip and type(inner[1]) is Flip and inner[1].share == 0.1
    images = dataset.batch(torch.arange(6), Draws(0, torch.arange(6)))["images"]
    assert images.shape == (6, 1, 8, 8)
    again = ComponentGraph.from_recipe(graph.plain).section("train_dataloader").dataset
    assert again.batch(torch.arange(6), Draws(0, torch.arange(6)))["images"].equal(images)


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        (
            "[{type: CenterCorp, size: 8}]",
            "pipeline.0.type: found 'CenterCorp', expected the name of a transform; nearest",
        ),
        ("[{type: CenterCrop}]", "pipeline.0.size: missing, CenterCrop needs it (an integer of at least 1)"),
        ("[{type: CenterCrop, size: 0}]", "pipeline.0.size: found 0, expected an integer of at least 1"),
        ("[{type: Flip, share: 1.5}]", "pipeline.0.share: found 1.5, expected a number from 0 to 1"),
        ("[{type: RandomFlip, prob: 2}]", "pipeline.0.prob: found 2, expected a number from 0 to 1"),
        ("[{type: LoadAnnotations}]", "found 'LoadAnnotations', expected the name of a transform"),
        ("[{type: Identity}]", "pipeline.0.type: found 'Identity', which is a codec, expected a transform"),
        ("{type: Flip}", "pipeline: found {'type': 'Flip'}, expected a list or null"),
        (
            "[{type: RandomApply, transforms: [{type: Flip, sahre: 1}]}]",
            "pipeline.0.transforms.0.sahre: Flip has no argument 'sahre'; nearest match: 'share'",
        ),
        ("[{type: RandomChoice, transforms: [{type: Flip}], prob: [0.5]}]", "dataset.pipeline.0: AssertionError"),
    ],
)
def test_mistakes_in_a_recipe_name_their_place(root, tiny_file, pipeline, problem):
    with pytest.raises(UserError) as caught:
        recipe_with(tiny_file, root, pipeline).section("train_dataloader")
    assert str(caught.value).startswith(f"{tiny_file}: train_dataloader.dataset") and problem in str(caught.value)
