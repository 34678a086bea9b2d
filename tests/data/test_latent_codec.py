"""Cached latents and the codec of a recipe: another one, other statistics, names of classes."""

import json
import re

import numpy as np
import pytest

from genflow.data import LatentCache
from genflow.data.latent_files import codec_hash, write_latent_cache
from genflow.errors import UserError

SHAPE, CLASSES = (2, 3, 4), 7
CODEC = {"type": "Toy", "weights": "ab12"}


def write(folder, count=1500, scale=1.0, shift=0.0, codec=CODEC, **options):
    """Latents that a codec with mean 3 and standard deviation 2 normalises, before and after other arithmetic."""
    generator = np.random.default_rng(0)
    moments = np.full((count, 1, 4, 3, 4), 0.2 * scale, dtype=np.float32)
    moments[:, :, :2] = scale * (3 + shift + 2 * generator.normal(size=(count, 1, 2, 3, 4)))
    labels = np.arange(count) * CLASSES // count
    write_latent_cache(folder, moments, labels, codec, CLASSES, **options)
    return folder


def read(folder):
    return LatentCache(str(folder), SHAPE, CLASSES, flip=False)


def normalize(latents):
    return (latents - 3) / 2


def check(folder, description=CODEC):
    read(folder).check_codec(description, normalize)


def test_latents_of_the_recipes_codec(tmp_path):
    check(write(tmp_path))
    check(tmp_path, {**CODEC, "weights": None})  # a recipe without weights cannot tell
    check(write(tmp_path / "few", count=3))


@pytest.mark.parametrize(
    ("codec", "problem"),
    [
        ({**CODEC, "weights": "cd34"}, "its codec has weights 'cd34', the recipe's has 'ab12'"),
        ({**CODEC, "type": "Other"}, "its codec has type 'Other', the recipe's has 'Toy'"),
        ({**CODEC, "scale": 0.18}, "its codec has scale 0.18, the recipe's has 'nothing'"),
        ({"name": "mine"}, "its codec has name 'mine', the recipe's has 'nothing'"),
    ],
)
def test_latents_of_another_codec_are_refused(tmp_path, codec, problem):
    with pytest.raises(UserError) as caught:
        check(write(tmp_path, codec=codec))
    message = str(caught.value)
    assert message.startswith(f"data_root '{tmp_path}' holds latents of another codec: {problem} (codec_hash ")
    assert codec_hash(codec)[:12] in message and codec_hash(CODEC)[:12] in message


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        ({"scale": 0.18215}, (-1.227, 0.183)),
        ({"scale": 0.5, "shift": 3.0}, (0.0, 0.5)),
        ({"shift": 0.6}, (0.3, 1.0)),
        ({"scale": float("nan")}, (float("nan"), float("nan"))),
    ],
)
def test_latents_with_other_statistics_are_refused_with_the_numbers(tmp_path, change, numbers):
    with pytest.raises(UserError, match="latents have mean") as caught:
        check(write(tmp_path, **change))
    found = re.search(
        "1000 latents have mean (.+) and standard deviation (.+) after the codec's normalize, expected 0 and "
        "1 within 0.25: they are scaled already, or ",
        str(caught.value),
    )
    assert [float(number) for number in found.groups()] == pytest.approx(numbers, abs=0.02, nan_ok=True)


def test_statistics_are_those_of_the_whole_cache(tmp_path):
    """Classes follow each other, and one may be far from the mean of all."""
    root = write(tmp_path, count=4000)
    moments = np.load(root / "moments.npy")
    moments[:1000, :, :2] += 2
    moments[1000:2000, :, :2] -= 2
    np.save(root / "moments.npy", moments)
    check(root)


def test_names_of_classes_are_kept(tmp_path):
    names = [f"class {number}" for number in range(CLASSES)]
    assert read(write(tmp_path, class_names=names)).class_names == names
    assert read(write(tmp_path)).class_names == []
    with pytest.raises(ValueError, match="class_names are not 7 different names, or none"):
        write(tmp_path, class_names=["a", "b"])
    description = json.loads((tmp_path / "cache.json").read_text())
    for wrong in ("cats", ["a"] * CLASSES, list(range(CLASSES)), {"a": 1}):
        (tmp_path / "cache.json").write_text(json.dumps({**description, "class_names": wrong}))
        with pytest.raises(UserError, match="class_names that are not 7 different names, or none"):
            read(tmp_path)
