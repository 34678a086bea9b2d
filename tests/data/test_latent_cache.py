"""Cached latents: what is read, what is sampled, and what is refused in one line."""

import json
import math
import pickle
import shutil

import numpy as np
import pytest
import torch

from genflow.data import LatentCache
from genflow.data.latent_files import codec_hash, write_latent_cache
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.registry import DATASETS

COUNT, SHAPE, CLASSES = 5, (2, 3, 4), 7
CODEC = {"type": "AutoencoderKL", "weights": "ab12", "scale": 0.18215}


def make_moments(views: int = 2, dtype: type = np.float32) -> np.ndarray:
    """Image n has mean 100 n + 10 view + channel and standard deviation 0.5."""
    moments = np.full((COUNT, views, 4, 3, 4), 0.5, dtype=dtype)
    for image in range(COUNT):
        for view in range(views):
            for channel in range(2):
                moments[image, view, channel] = 100 * image + 10 * view + channel
    return moments


@pytest.fixture
def root(tmp_path):
    write_latent_cache(tmp_path / "cache", make_moments(), np.arange(COUNT), CODEC, CLASSES)
    return tmp_path / "cache"


def read(root, **options) -> LatentCache:
    return LatentCache(str(root), SHAPE, **{"num_classes": CLASSES, **options})


def test_registered_under_its_name(root):
    config = {"type": "LatentCache", "data_root": str(root), "latent_shape": list(SHAPE)}
    dataset = DATASETS.build({**config, "num_classes": CLASSES})
    assert isinstance(dataset, LatentCache)
    assert dataset.image_shape == SHAPE


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_without_draws_the_means_of_the_first_view(tmp_path, dtype):
    write_latent_cache(tmp_path, make_moments(dtype=dtype), np.arange(COUNT, dtype=np.int32), CODEC, CLASSES)
    cache = read(tmp_path)
    assert len(cache) == COUNT
    batch = cache.batch(torch.tensor([3, 0, 3]), None)
    assert batch["images"].dtype == torch.float32
    assert batch["images"].shape == (3, *SHAPE)
    assert batch["images"][:, :, 0, 0].tolist() == [[300, 301], [0, 1], [300, 301]]
    assert batch["labels"].tolist() == [3, 0, 3]
    assert batch["labels"].dtype == torch.int64


def test_describes_its_codec(root):
    cache = read(root)
    assert cache.codec == CODEC
    assert cache.codec_hash == codec_hash(CODEC) == codec_hash(dict(reversed(CODEC.items())))
    assert codec_hash({**CODEC, "scale": 1.0}) != cache.codec_hash


def test_posterior_samples_have_its_mean_and_standard_deviation(root):
    batch = read(root, flip=False).batch(torch.full((4000,), 2), Draws(0, torch.arange(4000)))
    noise = (batch["images"] - torch.tensor([200.0, 201.0]).view(2, 1, 1)) / 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=4 / math.sqrt(noise.numel()))
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_half_of_the_samples_are_mirrored(root):
    indices, draws = torch.full((4000,), 1), Draws(0, torch.arange(4000))
    batch = read(root).batch(indices, draws)
    mirrored = batch["images"].mean(dim=(1, 2, 3)) > 105
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    assert torch.equal(mirrored, draws.uniform("flip") < 0.5)


def test_a_sample_depends_on_its_position_alone(root):
    cache = read(root)
    batch = cache.batch(torch.tensor([4, 1, 2]), Draws(9, torch.tensor([10, 11, 12])))
    alone = cache.batch(torch.tensor([1]), Draws(9, torch.tensor([11])))
    assert torch.equal(batch["images"][1], alone["images"][0])
    other = cache.batch(torch.tensor([1]), Draws(9, torch.tensor([12])))
    assert not torch.equal(other["images"], alone["images"])


def test_one_view_needs_flip_false(tmp_path):
    write_latent_cache(tmp_path, make_moments(views=1), np.arange(COUNT), CODEC, CLASSES)
    with pytest.raises(UserError, match="no mirror images, which flip needs; set flip to false"):
        read(tmp_path)
    batch = read(tmp_path, flip=False).batch(torch.tensor([1]), Draws(0, torch.tensor([0])))
    assert float(batch["images"].mean()) == pytest.approx(100.5, abs=0.5)


def test_pickle_opens_the_file_again_instead_of_copying_it(tmp_path):
    moments = np.zeros((200, 1, 8, 16, 16), dtype=np.float32)
    write_latent_cache(tmp_path, moments, np.zeros(200, dtype=np.int64), CODEC)
    cache = LatentCache(str(tmp_path), (4, 16, 16), flip=False)
    pickled = pickle.dumps(cache)
    assert len(pickled) < moments.nbytes / 100
    copy = pickle.loads(pickled)
    assert torch.equal(copy.batch(torch.tensor([199]), None)["images"], torch.zeros(1, 4, 16, 16))


def test_index_out_of_range(root):
    with pytest.raises(IndexError):
        read(root).batch(torch.tensor([COUNT]), None)


def refused(root, **options) -> str:
    """The message, checked to be one line that names the folder."""
    with pytest.raises(UserError) as caught:
        read(root, **options)
    message = str(caught.value)
    assert message.startswith(f"data_root '{root}' has no ")
    assert "\n" not in message
    return message


def test_missing_folder_and_files(root, tmp_path):
    absent = tmp_path / "imagenet256_latents"
    assert refused(absent) == (
        f"data_root '{absent}' has no latent cache: cache.json, moments.npy and labels.npy are missing"
    )
    (root / "labels.npy").unlink()
    assert refused(root) == f"data_root '{root}' has no latent cache: labels.npy is missing"
    (root / "moments.npy").unlink()
    (root / "moments.npy").mkdir()
    assert refused(root).endswith("moments.npy and labels.npy are missing")


def test_a_file_as_data_root(tmp_path):
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").endswith("cache.json, moments.npy and labels.npy are missing")


@pytest.mark.parametrize("name", ["moments.npy", "labels.npy"])
@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_truncated_arrays(root, name, kept):
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[:kept])
    assert f"{name} is truncated or not an array" in refused(root)


@pytest.mark.parametrize("name", ["moments.npy", "labels.npy"])
def test_files_that_are_no_plain_arrays(root, name):
    np.save(root / name, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert f"{name} is truncated or not an array" in refused(root)
    with open(root / name, "wb") as file:
        np.savez(file, a=np.zeros(3))
    assert f"{name} is truncated or not an array" in refused(root)
    with open(root / name, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**50,)}
        np.lib.format.write_array_header_1_0(file, header)
    assert f"{name} is truncated or not an array" in refused(root)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((COUNT, 3, 4, 3, 4), np.float32), "has shape (5, 3, 4, 3, 4), expected"),
        (np.zeros((COUNT - 1, 2, 4, 3, 4), np.float32), "has shape (4, 2, 4, 3, 4), expected"),
        (np.zeros((COUNT, 4, 3, 4), np.float32), "has shape (5, 4, 3, 4), expected"),
        (np.zeros((COUNT, 2, 4, 3, 4), np.float64), "has type float64, expected float16 or float32"),
        (np.zeros((COUNT, 2, 4, 3, 4), np.complex64), "has type complex64, expected float16 or float32"),
    ],
)
def test_moments_that_disagree(root, array, problem):
    np.save(root / "moments.npy", array)
    assert f"moments.npy {problem}" in refused(root)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.arange(COUNT + 1), "has shape (6,)"),
        (np.zeros((COUNT, 1), int), "has shape (5, 1)"),
        (np.zeros(COUNT), "type float64, expected (5,) integers"),
        (np.arange(COUNT) - 1, "has labels from -1 to 3, expected 0 to 6"),
        (np.arange(COUNT) + 3, "has labels from 3 to 7, expected 0 to 6"),
    ],
)
def test_labels_that_disagree(root, array, problem):
    np.save(root / "labels.npy", array)
    assert problem in refused(root)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"count": 0}, "count 0"),
        ({"count": -5}, "count -5"),
        ({"count": True}, "count True"),
        ({"count": "5"}, "count '5'"),
        ({"count": None}, "count None"),
        ({"count": 6}, "moments.npy has shape (5, 2, 4, 3, 4), expected (6, 1, 4, 3, 4) or (6, 2, 4, 3, 4)"),
        ({"latent_shape": [4, 32, 32]}, "latent_shape [4, 32, 32], the recipe has [2, 3, 4]"),
        ({"latent_shape": "x"}, "latent_shape 'x', the recipe has [2, 3, 4]"),
        ({"num_classes": 1000}, "num_classes 1000, the recipe has 7"),
        ({"codec": None}, "codec_hash that is not the hash of its codec"),
        ({"codec": {"type": "Other"}}, "codec_hash that is not the hash of its codec"),
        ({"codec_hash": 1}, "codec_hash that is not the hash of its codec"),
    ],
)
def test_descriptions_that_disagree(root, changes, problem):
    description = json.loads((root / "cache.json").read_text())
    (root / "cache.json").write_text(json.dumps({**description, **changes}))
    assert problem in refused(root)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"count":\n\n nope}'])
def test_unreadable_descriptions(root, content):
    (root / "cache.json").write_bytes(content)
    assert "cache.json is not readable" in refused(root)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_descriptions_of_another_form(root, content):
    (root / "cache.json").write_text(content)
    assert "cache.json is not a JSON object" in refused(root)


def test_writing_again_replaces_and_leaves_nothing_else(root):
    write_latent_cache(root, make_moments(views=1)[:2], np.array([6, 6]), CODEC, CLASSES)
    assert sorted(path.name for path in root.iterdir()) == ["cache.json", "labels.npy", "moments.npy"]
    assert len(read(root, flip=False)) == 2


def test_an_interrupted_rewrite_is_no_cache(root, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("genflow.data.latent_files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_latent_cache(root, make_moments(), np.arange(COUNT), CODEC, CLASSES)
    assert refused(root).endswith("cache.json is missing")


@pytest.mark.parametrize(
    ("moments", "labels"),
    [
        (np.zeros((COUNT, 4, 3, 4), np.float32), np.arange(COUNT)),
        (np.zeros((COUNT, 2, 3, 3, 4), np.float32), np.arange(COUNT)),
        (np.zeros((COUNT, 3, 4, 3, 4), np.float32), np.arange(COUNT)),
        (np.zeros((0, 2, 4, 3, 4), np.float32), np.arange(0)),
        (make_moments().astype(np.float64), np.arange(COUNT)),
        (make_moments(), np.arange(COUNT - 1)),
        (make_moments(), np.arange(COUNT) + 4),
        (make_moments(), np.arange(COUNT) / 2),
    ],
)
def test_bad_arrays_are_not_written(tmp_path, moments, labels):
    with pytest.raises(ValueError, match=r"(moments have|labels has) "):
        write_latent_cache(tmp_path / "new", moments, labels, CODEC, CLASSES)
    assert not (tmp_path / "new").exists()


def test_a_moved_cache_still_reads(root, tmp_path):
    shutil.move(root, tmp_path / "elsewhere")
    assert len(read(tmp_path / "elsewhere")) == COUNT
