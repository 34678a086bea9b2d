"""The benchmark of pictures and latents at toy size: what it reports, that all ways read the same, what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.benchmarks import data
from genflow.benchmarks.data import DataOptions, benchmark_data, data_table, rates
from genflow.data.pictures import center_crop
from genflow.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")

TINY = DataOptions(repeats=2, pictures=2, packed=5, latents=7, batch=2)


@pytest.fixture(scope="module")
def report():
    threads, done = torch.get_num_threads(), []
    report = benchmark_data(TINY, lambda: done.append(None))
    assert len(done) == TINY.runs and torch.get_num_threads() == threads
    return report


def test_the_record_has_every_way_with_its_limit(report):
    assert json.loads(json.dumps(report)) == report
    assert list(report)[:7] == ["benchmark", "a", "b", "ratio", "low", "high", "hardware"]
    assert report["hardware"]["threads"] == 1 and {"pillow", "torchvision"} <= report["versions"].keys()
    ways = {
        "decode": {"ours", "pillow", "torchvision"},
        "packed_images": {"batch", "take"},
        "latents": {"batch", "take", "noise"},
    }
    for part, names in ways.items():
        entries = {name: entry for name, entry in report[part].items() if isinstance(entry, dict)}
        assert entries.keys() == names
        for entry in entries.values():
            assert 0 < entry["lowest"] <= entry["samples_per_second"] <= entry["highest"]
            assert entry["share"] == pytest.approx(entry["samples_per_second"] / entry["limit"])
        assert len({entry["limit"] for entry in entries.values()}) == 1
    for side, way in (("a", "ours"), ("b", "pillow")):
        rate = report["decode"][way]
        assert 1 / rate["highest"] <= report[side] <= 1 / rate["lowest"]
    assert report["low"] <= report["ratio"] <= report["high"]
    assert report["latents"]["goal"] == 20_000 and report["decode"]["file_bytes"] > 1000
    assert data_table(report).row_count == 8


def test_rates_are_those_of_median_and_extreme_runs():
    found = rates({"way": [1.0, 4.0, 2.0], "limit": [0.5, 0.25, 1.0]}, 8)
    assert found == {"way": {"samples_per_second": 4, "lowest": 2, "highest": 8, "limit": 16, "share": 0.25}}


def test_pictures_are_the_same_every_time_and_differ_from_each_other(tmp_path):
    (tmp_path / "again").mkdir()
    first, second = data.write_pictures(tmp_path, 2)
    assert Image.open(first).size == (500, 375) and Image.open(first).format == "JPEG"
    assert first.read_bytes() == data.write_pictures(tmp_path / "again", 1)[0].read_bytes() != second.read_bytes()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1101, 723), (256, 256), (300, 200)])
def test_ours_crops_as_pillow_bit_for_bit_and_torchvision_nearly(size, tmp_path):
    Image.open(data.write_pictures(tmp_path, 1)[0]).resize(size).save(path := tmp_path / "sized.jpg", quality=90)
    expected = np.array(center_crop(Image.open(path), data.SIDE))
    assert np.array_equal(data.crop_ours(path), expected) and np.array_equal(data.crop_pillow(path), expected)
    found = data.crop_torchvision(path).permute(1, 2, 0).numpy()
    assert found.shape == expected.shape and found.dtype == np.uint8
    # Where a side is halved, an odd one is halved differently.
    assert np.abs(found.astype(int) - expected).max() <= (3 if min(size) < 512 else 40)
    assert np.abs(found.astype(int) - expected).mean() <= (0.5 if min(size) < 512 else 2)


def test_another_crop_is_not_timed(monkeypatch):
    monkeypatch.setattr(data, "crop_ours", lambda path: data.crop_pillow(path)[::-1])
    with pytest.raises(UserError, match=r"00000.jpg: GenFlow and Pillow crop it to different pixels"):
        benchmark_data(TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "--repeats: found 0, expected at least 1"),
        ({"pictures": 0}, "--pictures: found 0, expected at least 1"),
        ({"packed": -1}, "--packed: found -1, expected at least 1"),
        ({"batch": 0}, "--batch: found 0, expected at least 1"),
        ({"latents": 100}, "--batch: found 256, expected at most --packed 2000 and --latents 100"),
    ],
)
def test_wrong_numbers_are_one_line(options, message):
    with pytest.raises(UserError) as caught:
        DataOptions(**options)
    assert str(caught.value) == message
