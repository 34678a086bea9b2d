"""YAML as recipes want it: 1.2 scalars, refused tags, names of file and line, limits on aliases."""

import math
import os

import pytest
from recipe_files import load, refused, write

from genflow.config.recipe import dump_yaml, parse_yaml

SCALARS = [
    ("1e-4", 1e-4),
    ("-1E3", -1000.0),
    ("+.5", 0.5),
    (".inf", math.inf),
    ("010", 10),
    ("0o10", 8),
    ("0x1f", 31),
    ("-3", -3),
    ("on", "on"),
    ("off", "off"),
    ("yes", "yes"),
    ("No", "No"),
    ("y", "y"),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("1:30", "1:30"),
    ("2020-01-01", "2020-01-01"),
    ("2020-01-01 10:00:00", "2020-01-01 10:00:00"),
    ("=", "="),
    ("'1e-4'", "1e-4"),
    ('"010"', "010"),
    ("1.2.3", "1.2.3"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(f"key: {text}", "text")["key"]
    assert parsed == value and type(parsed) is type(value)


def test_every_scalar_survives_the_round_trip():
    values = [value for _, value in SCALARS] + [text for text, _ in SCALARS]
    values += ["$name", "a: b", "- a", "#", "a #b", " a ", "line\nbreak", "ünï", "'", '"', "{a}", "!x", "&a", "*a"]
    values += [1e22, 1e-7, -0.0, 5e-324, 0.1 + 0.2, 2**70, [], {}, [[1], {"a": []}], {"on": "off", "010": "null"}]
    again = parse_yaml(dump_yaml({"values": values}), "text")["values"]
    assert again == values
    assert [type(value) for value in again] == [type(value) for value in values]
    assert math.isnan(parse_yaml(dump_yaml({"value": math.nan}), "text")["value"])


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir ['marker']",
        "a: !!python/object/new:os.mkdir ['marker']",
        "a: !!python/object/apply:os.system ['touch marker']",
        "a: !!python/name:os.mkdir ''",
        "!!python/object/apply:os.mkdir ['marker']",
        "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.mkdir ['marker']",
        "a: {b: [!!python/tuple [1]]}",
        "a: !custom 1",
        "a: !!set {b, c}",
        "a: !!binary aGVsbG8=",
        "a: !!str 1",
        "a: ! text",
    ],
)
@pytest.mark.parametrize("where", ["recipe", "base", "override"])
def test_tags_are_refused_and_nothing_is_executed(text, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = None
    path = write(tmp_path, recipe=text)
    if where == "base":
        path = write(tmp_path, child="_base_: recipe.yaml\n")
    if where == "override":
        path, overrides = write(tmp_path, recipe="a: 1\n"), [f"a={text}"]
    before = sorted(os.listdir(tmp_path))
    message = refused(path, overrides)
    assert "found the tag" in message
    assert message.startswith("--cfg-options a:" if where == "override" else f"{tmp_path / 'recipe.yaml'}:")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3", 3, "duplicate key"),
        ("m:\n  x: 1\n  y: {z: 1, z: 2}", 3, "duplicate key"),
        ("%YAML 1.1\n---\na: on", 2, "this is YAML 1.2"),
        ("a: 1\n---\nb: 2", 2, "another document"),
        ("a: [1", 1, "expected ',' or ']'"),
        ("a: *x", 1, "undefined alias"),
        ("a: 1\nb:\tc\n\td: e", 2, "\\t"),
        ("? {a: b}\n: 3", 1, "unhashable key"),
        ("a: 1\nb: @x", 2, "cannot start any token"),
    ],
)
def test_bad_yaml_names_file_and_line(tmp_path, text, line, problem):
    path = write(tmp_path, recipe=text)
    message = refused(path)
    assert message.startswith(f"{path}:{line}: not a valid recipe: ") and problem in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found nothing, expected a mapping"),
        ("- a", "found a list, expected a mapping"),
        ("word", "found text, expected a mapping"),
        ("1: 2", "key 1 is int 1, expected text"),
        ("model: {true: 2}", "key True is a truth value, expected text"),
        ("null: 2", "key None is nothing, expected text"),
        ("a: \x00", "special characters are not allowed"),
        ("a: &x [*x]", "too large or too deeply nested"),
        ("a: &x {b: *x}", "too large or too deeply nested"),
        ("a: " + "[" * 80 + "]" * 80, "too deeply nested"),
        ("a: " + "[" * 5000 + "]" * 5000, "too deeply nested"),
        ("a: " + "1" * 5000, "not a valid recipe: Exceeds the limit"),
        ("_base_: 3", "_base_: found int 3, expected a file"),
        ("_base_: [3]", "_base_: found a list, expected a file"),
        ("prerequisites: [a]", "prerequisites: found a list, expected a mapping"),
        ("prerequisites: {a: 3}", "prerequisites.a: found int 3, expected a recipe file"),
    ],
)
def test_bad_structure_names_the_file(tmp_path, text, problem):
    path = write(tmp_path, recipe=text)
    message = refused(path)
    assert message.startswith(str(path)) and problem in message


def test_aliases_multiplied_by_each_other_end_at_a_limit(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "too large" in refused(write(tmp_path, recipe="\n".join(lines)))


def test_aliases_are_measured_in_bytes_too(tmp_path):
    """4 kB, ten thousand times, and merged keys."""
    lines = [f"a: &a {'x' * 4096}", "b: &b [" + ", ".join(["*a"] * 100) + "]", "c: [" + ", ".join(["*b"] * 100) + "]"]
    assert "too large" in refused(write(tmp_path, recipe="\n".join(lines)))
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    assert "too large" in refused(write(tmp_path, recipe="\n".join(lines)))
    assert "larger than" in refused(write(tmp_path, recipe="# " + "x" * 2**22))


def test_an_alias_is_a_value_of_its_own(tmp_path):
    recipe = load(tmp_path, "a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 3}", ["c.b.0=9"])
    assert recipe == {"a": {"b": [1, 2]}, "c": {"b": [9, 2]}, "d": {"b": [1, 2], "e": 3}}
