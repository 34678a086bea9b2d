"""Classes by name and by number, and what is refused in one line."""

import pytest

from genflow.errors import UserError
from genflow.inference.classes import find_classes

CATS = ["birds", "cats", "dogs"]
NUMBERED = ["1", "10", "2"]  # as folders are sorted


@pytest.mark.parametrize(
    ("given", "names", "numbers"),
    [
        (["cats", "2", "birds"], CATS, [1, 2, 0]),
        (["name=cats", "number=2"], CATS, [1, 2]),
        (["0", "2"], [], [0, 2]),
        (["10"], NUMBERED, [1]),
        (["0"], NUMBERED, [0]),
        (["name=1", "name=2", "number=1", "number=2"], NUMBERED, [0, 2, 1, 2]),
        (["2"], NUMBERED, [2]),
        (["number=1"], ["number=1", "b", "c"], [1]),
        (["name=b"], ["name=b", "b", "c"], [0]),
        (["0", "1"], ["0", "1", "2"], [0, 1]),
        ([], CATS, []),
    ],
)
def test_names_and_numbers(given, names, numbers):
    assert find_classes("--labels", given, 3, names) == numbers


def test_no_class_where_it_is_one():
    assert find_classes("--labels", ["-1", "cats"], 3, CATS, least=-1) == [-1, 1]


@pytest.mark.parametrize(
    ("word", "names", "message"),
    [
        ("cat", CATS, "found cat, expected 0 to 2 or a class's name; nearest match: 'cats'"),
        ("name=dog", CATS, "found name=dog, expected 0 to 2 or a class's name; nearest match: 'dogs'"),
        ("3", CATS, "found 3, expected 0 to 2 or a class's name"),
        ("-1", CATS, "found -1, expected 0 to 2 or a class's name"),
        ("3", [], "found 3, expected 0 to 2"),
        ("cats", [], "found cats, expected 0 to 2"),
        ("cats", ["cats"], "found cats, expected 0 to 2"),  # names of another data set
        ("1.0", [], "found 1.0, expected 0 to 2"),
        ("9" * 5000, [], f"found {'9' * 5000}, expected 0 to 2"),
        ("name=1", CATS, "found name=1, expected 0 to 2 or a class's name"),
        ("1", NUMBERED, "'1' is the name of class 0 and the number of another; write name=1 or number=1"),
    ],
)
def test_mistakes(word, names, message):
    with pytest.raises(UserError) as caught:
        find_classes("--labels", [word], 3, names)
    assert str(caught.value) == f"--labels: {message}"


def test_a_generator_without_classes():
    with pytest.raises(UserError, match="--from: the generator has no classes"):
        find_classes("--from", ["0"], 0)
    assert find_classes("--labels", [], 0) == []
