"""Packed data: the same stream as the pictures that were packed, and every fault one line."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.data import ImageFolder, LatentCache, PackedImages
from genflow.data.latent_files import codec_hash
from genflow.data.packed import PackedRows, faults, read_index
from genflow.data.packed_writing import Made, Packing, write_packed
from genflow.draws import Draws
from genflow.errors import UserError

COUNT, SIZE = 11, 4
CODEC = {"type": "SDVAE", "weights": "ab12"}


def pictures():
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)


def packing(rows=None, unreadable=(), **options):
    rows = pictures() if rows is None else rows

    def make(indices):
        kept = np.array([index not in unreadable for index in indices])
        return Made(rows[indices][kept], kept, [f"picture {index}" for index in indices if index in unreadable])

    labels = np.arange(COUNT) % 3
    settings = {"holds": "images", "shape": rows.shape[1:], "labels": labels, "num_classes": 3, "shard_size": 4}
    return Packing(**{**settings, "class_names": ["a", "b", "c"], "plan": {"source": "x"}, "make": make, **options})


@pytest.fixture
def folder(tmp_path):
    write_packed(tmp_path / "packed", packing())
    return tmp_path / "packed"


def read(folder, **options):
    return PackedImages(str(folder), SIZE, **options)


def test_rows_come_back_in_any_order(folder):
    rows = PackedRows(folder, "images")
    order = np.array([10, 0, 7, 7, 3, 4, 9])
    assert np.array_equal(rows.take(order), pictures()[order])
    assert rows.labels.tolist() == [index % 3 for index in range(COUNT)]
    assert len(rows.take(np.array([], dtype=np.int64))) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"images_{shard:05d}.npy" for shard in range(3)),
        "index.json",
        *(f"labels_{shard:05d}.npy" for shard in range(3)),
    ]
    for wrong in (COUNT, -1):
        with pytest.raises(IndexError, match=f"the data set has {COUNT} samples"):
            rows.take(np.array([0, wrong]))


def test_pickle_opens_the_files_again(folder):
    rows = PackedRows(folder, "images")
    assert np.array_equal(pickle.loads(pickle.dumps(rows)).take(np.array([5])), pictures()[5:6])


def test_packed_or_not_the_stream_is_the_same(tmp_path):
    for index, (pixels, name) in enumerate(zip(pictures(), "abcabcabcab", strict=True)):
        (tmp_path / "png" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "png" / name / f"{index:02d}.png")
    folder = ImageFolder(str(tmp_path / "png"), SIZE, flip=True)
    rows = np.stack([folder.read(index) for index in range(COUNT)])
    write_packed(tmp_path / "packed", packing(rows, labels=folder.labels))
    packed = read(tmp_path / "packed", flip=True)
    indices, draws = torch.tensor([3, 0, 10, 3, 5]), Draws(7, torch.arange(5))
    for some in (draws, None):
        ours, theirs = packed.batch(indices, some), folder.batch(indices, some)
        assert torch.equal(ours["images"], theirs["images"]) and torch.equal(ours["labels"], theirs["labels"])
    assert packed.fingerprint() == folder.fingerprint()


def test_classes_as_found_stated_or_left_out(folder):
    assert (read(folder).num_classes, read(folder, num_classes=3).class_names) == (3, ("a", "b", "c"))
    assert read(folder, num_classes=0).batch(torch.tensor([4]), None)["labels"].tolist() == [0]
    for options, problem in (
        ({"num_classes": 4}, "has 3 classes, the recipe 4"),
        ({"channels": 1}, "found pictures of shape (4, 4, 3) (height, width, channels), the recipe has (4, 4, 1)"),
    ):
        with pytest.raises(UserError) as caught:
            read(folder, **options)
        assert problem in str(caught.value)


def test_unreadable_pictures_are_left_out_and_listed(tmp_path):
    index = write_packed(tmp_path, packing(unreadable=(4, 5, 6, 7, 9)))
    assert index.left_out == tuple(f"picture {number}" for number in (4, 5, 6, 7, 9))
    kept = [0, 1, 2, 3, 8, 10]
    assert np.array_equal(PackedRows(tmp_path, "images").take(np.arange(6)), pictures()[kept])
    assert index.class_counts == tuple(sum(number % 3 == label for number in kept) for label in range(3))
    assert "5 left out when they were packed" in read(tmp_path).notes[0]


def test_a_class_that_loses_its_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="class 'b' has no picture that could be read"):
        write_packed(tmp_path, packing(unreadable=(1, 4, 7, 10)))
    with pytest.raises(UserError, match="none of the 11 pictures could be read, 'picture 0' first"):
        write_packed(tmp_path / "new", packing(unreadable=range(COUNT)))


def test_a_killed_run_goes_on_with_whole_shards(tmp_path, folder):
    asked = []

    def make(indices):
        asked.append(int(indices[0]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return packing().make(indices)

    with pytest.raises(KeyboardInterrupt):
        write_packed(tmp_path / "new", packing(make=make))
    with pytest.raises(UserError, match="its preparation is not finished; run it again"):
        read(tmp_path / "new")
    (tmp_path / "new" / "images_00000.npy").write_bytes(b"damaged")
    (tmp_path / "new" / ".images_00002.npy.abcd1234.partial").write_bytes(b"half")
    write_packed(tmp_path / "new", packing(make=make))
    assert asked == [0, 4, 8, 0, 8]
    for path in folder.iterdir():
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "new").iterdir())) == len(list(folder.iterdir()))


def test_a_finished_folder_is_left_alone(folder):
    def make(indices):
        raise AssertionError

    write_packed(folder, packing(make=make))
    with pytest.raises(UserError, match="holds other data: source 'x' there, 'y' now; take another folder"):
        write_packed(folder, packing(plan={"source": "y"}))


def test_a_begun_folder_keeps_its_plan(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_packed(tmp_path, packing(make=lambda indices: 1 / 0))
    with pytest.raises(UserError, match="was begun with other data: shard_size 4 there, 5 now"):
        write_packed(tmp_path, packing(shard_size=5))


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \('notes.txt'\), expected a new or empty folder"):
        write_packed(tmp_path, packing())
    with pytest.raises(UserError, match="is a file, expected a folder"):
        write_packed(tmp_path / "notes.txt", packing())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_missing_and_foreign_shards(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (folder / "images_00001.npy").unlink()
    with pytest.raises(UserError, match=r"images_00001\.npy: is missing; tools/prepare_data\.py verify says"):
        read(folder)
    np.save(folder / "images_00001.npy", np.zeros((4, 5, 5, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"found an array of uint8 of shape \(4, 5, 5, 3\), the index says uint8"):
        read(folder)
    (folder / "images_00001.npy").write_bytes((tmp_path / "copy" / "images_00001.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"images_00001\.npy: is truncated or not an array"):
        read(folder)


def test_verify_finds_every_changed_file(folder):
    assert list(faults(folder)) == []
    content = bytearray((folder / "images_00000.npy").read_bytes())
    content[-3] ^= 1
    (folder / "images_00000.npy").write_bytes(content)
    (folder / "labels_00002.npy").unlink()
    damaged, missing = faults(folder)
    assert "images_00000.npy: is damaged, or another file" in damaged and "labels_00002.npy: is missing" in missing


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "other"}, "is not the index of packed data"),
        ({"version": 9}, "found version 9, this program reads 1"),
        ({"count": 12}, "count 12, its shards have 11"),
        ({"shape": [4, 4]}, "shape (4, 4) is not that of images"),
        ({"holds": "sounds"}, "it holds 'sounds'"),
        ({"num_classes": -1}, "found -1"),
        ({"class_names": ["a"]}, "1 names of 3 classes"),
        ({"shards": []}, "its shards have 0"),
        ({"shards": [{"rows": "../x.npy"}]}, "found '../x.npy', expected the name of a file"),
        ({"shards": 3}, "is damaged"),
    ],
)
def test_damaged_indices(folder, changes, problem):
    plain = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**plain, **changes}))
    with pytest.raises(UserError) as caught:
        read(folder)
    assert problem in str(caught.value) and str(caught.value).startswith(f"{folder}/index.json: ")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_indices_that_are_none(folder, content):
    (folder / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json: is not"):
        read_index(folder)


def test_labels_out_of_range(tmp_path):
    write_packed(tmp_path, packing(labels=np.arange(COUNT) % 4, num_classes=4, class_names=[]))
    plain = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**plain, "num_classes": 3, "class_counts": [1, 1, 1]}))
    with pytest.raises(UserError, match="has labels from 0 to 3, expected 0 to 2"):
        read(tmp_path)


@pytest.fixture
def latents(tmp_path):
    """Image n has mean n in view 0 and n + 0.5 in view 1, and standard deviation 0.25."""
    rows = np.full((COUNT, 2, 4, 3, 3), 0.25, dtype=np.float16)
    rows[:, :, :2] = (np.arange(COUNT)[:, None] + np.array([0, 0.5]))[..., None, None, None]
    plan = {"codec": CODEC, "codec_hash": codec_hash(CODEC)}
    write_packed(tmp_path / "latents", packing(rows, holds="latents", plan=plan))
    return tmp_path / "latents"


def test_latents_are_sampled_from_their_posteriors(latents):
    cache = LatentCache(str(latents), (2, 3, 3))
    assert cache.num_classes == 3 and list(cache.class_names) == ["a", "b", "c"] and cache.codec == CODEC
    assert cache.batch(torch.tensor([9, 1]), None)["images"].mean(dim=(1, 2, 3)).tolist() == [9, 1]
    draws = Draws(0, torch.arange(2000))
    found = cache.batch(torch.full((2000,), 6), draws)["images"]
    mirrored = draws.uniform("flip") < 0.5
    assert float(found[mirrored].mean()) == pytest.approx(6.5, abs=0.02)
    assert float(found[~mirrored].mean()) == pytest.approx(6.0, abs=0.02)
    assert float((found[mirrored] - 6.5).std()) == pytest.approx(0.25, abs=0.01)


def test_latents_of_another_size_number_or_codec(latents):
    for options, problem in (
        ({"latent_shape": (4, 3, 3)}, "has latent_shape [2, 3, 3], the recipe has [4, 3, 3]"),
        ({"num_classes": 10}, "has num_classes 3, the recipe has 10"),
    ):
        with pytest.raises(UserError) as caught:
            LatentCache(str(latents), **{"latent_shape": (2, 3, 3), **options})
        assert problem in str(caught.value)
    with pytest.raises(UserError, match="holds latents, expected images"):
        read(latents)
    with pytest.raises(UserError, match="holds latents of another codec: its codec has weights 'ab12', the recipe's"):
        LatentCache(str(latents), (2, 3, 3)).check_codec({**CODEC, "weights": "cd34"}, lambda latents: latents)
