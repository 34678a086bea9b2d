"""Absolute paths are cut down to their last names, and nothing else is changed."""

import pytest

from genflow.sharing.private import without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/my photos/cats", "cats"),
        ("/home/me/photos/", "photos"),
        ("~/photos", "photos"),
        ("C:\\Users\\me\\photos", "photos"),
        ("C:/Users/me/photos", "photos"),
        ("\\\\server\\share\\photos", "photos"),
        ("see /home/me/photos, then file:///home/me/b", "see photos, then b"),
        ("data_root=/home/me/photos", "data_root=photos"),
        ("data_root:C:\\me\\photos", "data_root:photos"),
    ],
)
def test_paths_go(text, expected):
    assert without_paths(text) == (expected, {"": expected})


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/photos",
        "https://arxiv.org/abs/2512.10953",
        "data/photos",
        "and/or 1/2",
        "$teacher",
        "a: b",
        "../a",
        "",
    ],
)
def test_what_is_none_stays(text):
    assert without_paths(text) == (text, {})


def test_keys_and_nested_values_are_looked_through():
    found, changed = without_paths({"a": [1, None, {"b /x/y": "/x/z", "c": 0.5}], "d": True})
    assert found == {"a": [1, None, {"b y": "z", "c": 0.5}], "d": True}
    assert changed == {"a.2.b y": "z"}
