"""Classes that a file states: both forms of JSON, CSV, numbers and names, and every mistake in one line."""

import json
import os
import shutil

import pytest
import torch
from PIL import Image

from genflow.data import ImageFolder
from genflow.errors import UserError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "pictures" / "00").mkdir(parents=True)
    for value, name in enumerate(["0.png", "1.png", "00/2.png", "3.jpg.png", "4.tif"]):
        Image.new("L", (4, 4), 10 * value).save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def read(root, content, ending="json", **options):
    (root / f"labels.{ending}").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return ImageFolder(str(root), 4, labels=f"labels.{ending}", **options)


def classes(dataset):
    """{value of the picture: label}."""
    return {int(dataset.read(index)[0, 0, 0]): int(label) for index, label in enumerate(dataset.labels)}


MAPPING = {"3.jpg.png": 1, "0.png": 0, "00/2.png": 1, "4.tif": 0}


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (MAPPING, "json"),
        ({"labels": [[file, label] for file, label in MAPPING.items()]}, "JSON"),
        ({"made_by": "x", "labels": [["./" + file, label] for file, label in MAPPING.items()]}, "json"),
        ("file,label\n" + "".join(f"{file},{label}\n" for file, label in MAPPING.items()), "csv"),
        ("".join(f'"{file}" , {label}\r\n\r\n' for file, label in MAPPING.items()).replace('" ,', '",'), "csv"),
        ("image_id,class\n" + "".join(f"{file},{label}\n" for file, label in MAPPING.items()), "CSV"),
        ("\ufeff" + "".join(f"{file},{label}\n" for file, label in MAPPING.items()), "csv"),
    ],
    ids=["mapping", "stylegan", "dots", "csv", "quoted", "capitals", "excel"],
)
def test_every_form_gives_the_same_classes(root, content, ending):
    dataset = read(root, content, ending)
    assert classes(dataset) == {30: 1, 0: 0, 20: 1, 40: 0}
    assert dataset.labels.tolist() == [0, 0, 1, 1] and dataset.num_classes == 2 and dataset.class_names == []
    assert [os.path.basename(dataset.path(index)) for index in range(4)] == ["0.png", "4.tif", "2.png", "3.jpg.png"]
    assert dataset.notes == [
        f"data_root '{root}': 4 pictures, 2 classes; left out: 1 pictures without a label ('1.png')"
    ]
    assert dataset.fingerprint() == {"samples": 4, "classes": 2, "class_names": ""}


def test_names_sorted_make_the_classes(root):
    dataset = read(root, {"0.png": "zebra", "1.png": "ant", "00/2.png": "zebra"})
    assert dataset.class_names == ["ant", "zebra"] and classes(dataset) == {0: 1, 10: 0, 20: 1}
    assert read(root, "0.png,7 up\n1.png,12\n", "csv").class_names == ["12", "7 up"]  # not all are numbers
    assert read(root, {"0.png": "1", "1.png": "0"}).class_names == ["0", "1"]  # text in JSON


def test_a_file_elsewhere_and_no_classes(root, tmp_path):
    (tmp_path / "elsewhere.json").write_text('{"0.png": 1, "1.png": 0}')
    dataset = ImageFolder(str(root), 4, labels=str(tmp_path / "elsewhere.json"), num_classes=2)
    assert classes(dataset) == {10: 0, 0: 1}
    alone = ImageFolder(str(root), 4, labels=str(tmp_path / "elsewhere.json"), num_classes=0)
    assert classes(alone) == {0: 0, 10: 0} and alone.num_classes == 0
    assert alone.batch(torch.arange(2), None)["labels"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("content", "ending", "problem"),
    [
        ({"0.png": 0, "5.png": 1}, "json", "'5.png' is not in data_root"),
        ({"0.png": 0, "00": 1}, "json", "'00' is not in data_root"),
        ({"0.png": 0, "1.png": 2}, "json", "class 1 of 3 has no pictures"),
        ({"0.png": 0, "1.png": 10**9}, "json", "class 1 of 1000000001 has no pictures"),
        ({"0.png": -1, "1.png": 0}, "json", "'0.png' has label -1, expected 0 or above"),
        ({"0.png": 0, "1.png": "cat"}, "json", "'1.png' has label 'cat', others have 0; expected numbers or names"),
        ({"0.png": 0.5}, "json", "'0.png' has label 0.5, expected a number or a name"),
        ({"0.png": True}, "json", "'0.png' has label True, expected a number or a name"),
        ({"0.png": None}, "json", "'0.png' has label None, expected a number or a name"),
        ({"0.png": ""}, "json", "'0.png' has label '', expected a number or a name"),
        ('{"0.png": 0, "0.png": 1}', "json", "'0.png' is named twice"),
        ('{"0.png": 0, "./00/../0.png": 1}', "json", "'0.png' is named twice"),
        ({"labels": [["0.png", 0], ["0.png", 0]]}, "json", "'0.png' is named twice"),
        ({"labels": [["0.png", 0], ["1.png"]]}, "json", "labels.1: found ['1.png'], expected [\"file\", label]"),
        ({"labels": None}, "json", "'labels' has label None, expected a number or a name"),
        ({"labels": []}, "json", "has no labels"),
        ({"../0.png": 0}, "json", "'../0.png' does not lie under data_root"),
        ({"/etc/passwd": 0}, "json", "'/etc/passwd' does not lie under data_root"),
        ({}, "json", "has no labels"),
        ([["0.png", 0]], "json", 'found [[\'0.png\', 0]], expected {"file": label} or {"labels"'),
        ("{", "json", "Expecting property name"),
        ("[" * 100_000, "json", "maximum recursion depth exceeded"),
        ("\xff", "json", "Expecting value"),
        ("0.png,0,1\n", "csv", "line 1: found 3 columns, expected file,label"),
        ("file,label\n0.png,0\n1.png\n", "csv", "line 3: found 1 columns, expected file,label"),
        ('"0.png,0\n', "csv", "unexpected end of data"),
        ("file,label\n", "csv", "has no labels"),
        ("", "csv", "has no labels"),
        ("0.png,0\n1.png,0\n0.png,1\n", "csv", "'0.png' is named twice"),
    ],
)
def test_mistakes_name_the_file_and_the_place(root, content, ending, problem):
    with pytest.raises(UserError) as caught:
        read(root, content, ending)
    assert str(caught.value).startswith(f"labels '{root}/labels.{ending}': ") and problem in str(caught.value)


def test_the_number_of_classes_is_compared(root):
    with pytest.raises(UserError, match=r"'1.png' has label 1, expected 0 to 0"):
        read(root, {"0.png": 0, "1.png": 1}, num_classes=1)
    with pytest.raises(UserError, match=r"class 2 of 3 has no pictures"):
        read(root, {"0.png": 0, "1.png": 1}, num_classes=3)
    with pytest.raises(UserError, match=r"has 2 classes, the recipe has 5"):
        read(root, {"0.png": "a", "1.png": "b"}, num_classes=5)


def test_a_file_of_labels_that_is_none(root):
    with pytest.raises(UserError, match=r"labels.json: not a readable file of labels: No such file or directory$"):
        ImageFolder(str(root), 4, labels="labels.json")
    os.mkfifo(root / "labels.csv")
    with pytest.raises(UserError, match=r"not a readable file of labels: found a pipe"):
        ImageFolder(str(root), 4, labels="labels.csv")
    (root / "labels.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"'utf-8' codec can't decode"):
        ImageFolder(str(root), 4, labels="labels.json")


def test_the_order_of_the_file_does_not_matter(root):
    one = read(root, {"0.png": 1, "1.png": 0, "3.jpg.png": 1})
    other = read(shutil.copytree(root, root.parent / "copy"), {"3.jpg.png": 1, "1.png": 0, "0.png": 1})
    assert [one.read(index).sum() for index in range(3)] == [other.read(index).sum() for index in range(3)]
