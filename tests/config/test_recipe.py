"""Reading recipes: YAML 1.2 scalars, refused tags, inheritance, environment, overrides, prerequisites, round trip."""

import os
from pathlib import Path

import pytest
from recipe_files import load, refused, write

from genflow.config.recipe import dump_yaml, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_missing_and_unreadable_recipes(tmp_path):
    path = write(tmp_path, digits="a: 1")
    assert refused(tmp_path / "digit.yaml").endswith("digit.yaml: no such recipe; nearest match: 'digits'")
    assert "not a readable recipe" in refused(tmp_path)
    path.write_bytes(b"a: \xff\xfe")
    assert "not a readable recipe" in refused(path)
    assert "no such recipe" in refused(tmp_path / "line\nbreak.yaml")  # still one line


# Inheritance


def test_inheritance_merges_mappings_and_replaces_the_rest(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", grandparent="a: {x: 1, y: {z: 1, w: [1, 2]}}\nkept: [1, 2]")
    write(tmp_path, parent="_base_: sub/grandparent.yaml\na: {y: {z: 2}}\nreplaced: [1, 2]", other="b: {c: 1}")
    child = "_base_: [parent.yaml, ./other.yaml]\na: {y: {w: [3]}, new: {deep: 1}}\nreplaced: 5"
    assert load(tmp_path, child) == {
        "a": {"x": 1, "y": {"z": 2, "w": [3]}, "new": {"deep": 1}},
        "kept": [1, 2],
        "replaced": 5,
        "b": {"c": 1},
    }


def test_delete_replaces_a_mapping_and_alone_removes_the_key(tmp_path):
    write(tmp_path, base="a: {x: 1, y: {z: 1}}\nb: {c: 1}\nd: 1\ne: {f: {g: 1}, h: 1}")
    child = (
        "_base_: base.yaml\na: {_delete_: true, y: {w: 2}}\nb: {c: {_delete_: true, e: 1}}\nd: {_delete_: true}\n"
        "e: {f: {_delete_: true}}"
    )
    assert load(tmp_path, child) == {"a": {"y": {"w": 2}}, "b": {"c": {"e": 1}}, "e": {"h": 1}}


def test_a_key_in_two_bases_is_refused(tmp_path):
    path = write(tmp_path, child="_base_: [one.yaml, two.yaml]", one="a: {x: 1}", two="a: {y: 1}")
    assert refused(path) == f"{path}: _base_: 'a' is in more than one base; one place for each key"


def test_cycles_of_bases_are_refused(tmp_path):
    path = write(tmp_path, one="_base_: two.yaml", two="_base_: ./one.yaml")
    message = refused(path)
    assert message.startswith(f"{path}: _base_ forms a cycle: ") and message.count("one.yaml") == 3
    itself = write(tmp_path, itself="_base_: itself.yaml")
    assert "forms a cycle" in refused(itself)


def test_a_missing_base_names_who_asks_for_it(tmp_path):
    path = write(tmp_path, child="_base_: digts.yaml", digits="a: 1")
    assert refused(path) == f"{path}: _base_: 'digts.yaml' does not exist; nearest match: 'digits'"


# Environment


def test_placeholders_take_the_environment_or_their_default(tmp_path, monkeypatch):
    text = "a: {{$GF_A:1e-3}}\nb: '{{ $GF_A : 7 }}'\nc: \"{{$GF_B:data}}/sub/{{$GF_A:2}}\"\n"
    text += "d: [{{$GF_B:null}}]\ne: {{$GF_C:}}"
    monkeypatch.delenv("GF_A", raising=False)
    monkeypatch.delenv("GF_B", raising=False)
    assert load(tmp_path, text) == {"a": 1e-3, "b": 7, "c": "data/sub/2", "d": [None], "e": None}
    monkeypatch.setenv("GF_A", "on")
    monkeypatch.setenv("GF_B", "/mnt/x y")
    expected = {"a": "on", "b": "on", "c": "/mnt/x y/sub/on", "d": ["/mnt/x y"], "e": None}
    assert load(tmp_path, text) == expected


@pytest.mark.parametrize(
    "value",
    [
        "1\nmodel: injected",
        "[1, 2]",
        "{type: TARFlow}",
        "x, y: 2",
        "1}\n",
        "a: b: c",
        "/data #1",
        "'quoted'",
        "*alias",
        "&anchor x",
        "@x",
        "!!python/object/apply:os.mkdir ['marker']",
        "__environment_1__",
        "{{$HOME:x}}",
        '"',
    ],
)
def test_a_value_from_the_environment_cannot_alter_the_structure(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GF_A", value)
    recipe = load(tmp_path, "a: {{$GF_A:1}}\nb: [{{$GF_A:1}}, 'x{{$GF_A:1}}']\nc: {d: \"{{$GF_A:1}}\"}")
    assert recipe == {"a": value, "b": [value, f"x{value}"], "c": {"d": value}}
    assert os.listdir(tmp_path) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: '{{$GF_A}}'", "expected a placeholder {{$NAME:default}}"),
        ("a: '{{$GF_A:two words}}'", "expected a placeholder {{$NAME:default}}"),
        ("{{$GF_A:a}}: 1", "a placeholder in a key"),
        ("a: __environment_3__", "stands for placeholders"),
    ],
)
def test_bad_placeholders_are_refused(tmp_path, text, problem):
    path = write(tmp_path, recipe=text)
    message = refused(path)
    assert message.startswith(f"{path}: ") and problem in message


# Overrides


def test_overrides(tmp_path):
    text = "a: {b: 1, c: [1, {d: 2}]}\ne: 3"
    overrides = ["a.b=1e-4", "a.c.1.d=on", "a.new.deep=[1, {x: y}]", "e=null", "f=a=b", "g="]
    assert load(tmp_path, text, overrides) == {
        "a": {"b": 1e-4, "c": [1, {"d": "on"}], "new": {"deep": [1, {"x": "y"}]}},
        "e": None,
        "f": "a=b",
        "g": None,
    }
    assert load(tmp_path, text, {"a.c.0": "7", "e": 4}) == {"a": {"b": 1, "c": ["7", {"d": 2}]}, "e": 4}
    assert load(tmp_path, text, ["e=5", "e=6"])["e"] == 6


@pytest.mark.parametrize("text", ["a", "=1", "", ".a=1", "a.=1", "a..b=1"])
def test_overrides_need_key_and_value(tmp_path, text):
    message = refused(write(tmp_path, recipe="a: {b: 1}"), [text])
    assert message == f"--cfg-options: found '{text}', expected key=value, e.g. train_cfg.max_iters=100"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("a.c.2=1", "--cfg-options a.c.2: 'a.c.2' is not in a list of 2"),
        ("a.c.-1=1", "--cfg-options a.c.-1: 'a.c.-1' is not in a list of 2"),
        ("a.c.x.y=1", "--cfg-options a.c.x.y: 'a.c.x' is not in a list of 2"),
        ("a.c.²=1", "--cfg-options a.c.²: 'a.c.²' is not in a list of 2"),
        ("a.b.x=1", "--cfg-options a.b.x: 'a.b' is int 1, not a section"),
        ("a.n.x=1", "--cfg-options a.n.x: 'a.n' is nothing, not a section"),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path, override, problem):
    path = write(tmp_path, recipe="a: {b: 1, c: [1, 2], n: null}")
    assert refused(path, [override]) == f"{path}: {problem}"


@pytest.mark.parametrize("value", ["[1", "{x: 1, x: 2}", "{1: 2}", "&x [*x]"])
def test_overrides_are_as_strict_as_recipes(tmp_path, value):
    assert refused(write(tmp_path, recipe="a: 1"), [f"a={value}"]).startswith("--cfg-options a:")


# Prerequisites


def test_prerequisites_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "shared").mkdir()
    write(tmp_path / "recipes", main="_base_: ../shared/base.yaml\na: 1")
    write(tmp_path / "shared", base="prerequisites: {teacher: flow.yaml}", flow="_base_: deep.yaml\nb: 1", deep="c: 2")
    monkeypatch.chdir(tmp_path / "shared")
    recipe = load_recipe(Path("../recipes/main.yaml"))
    assert recipe == {"a": 1, "prerequisites": {"teacher": {"name": "flow", "recipe": {"b": 1, "c": 2}}}}


def test_prerequisites_with_run_and_name_and_prerequisites_of_their_own(tmp_path):
    write(tmp_path, middle="prerequisites: {inner: inner.yaml}", inner="train_cfg: {max_iters: 9}")
    text = "prerequisites: {t: {recipe: middle.yaml, run: runs/x, name: y}}"
    overrides = ["prerequisites.t.recipe.prerequisites.inner.recipe.train_cfg.max_iters=3"]
    inner = {"name": "inner", "recipe": {"train_cfg": {"max_iters": 3}}}
    assert load(tmp_path, text, overrides) == {
        "prerequisites": {"t": {"run": "runs/x", "name": "y", "recipe": {"prerequisites": {"inner": inner}}}}
    }


def test_overrides_reach_into_and_replace_prerequisites(tmp_path):
    write(tmp_path, flow="train_cfg: {max_iters: 9}\nseed: 1", other="seed: 2")
    text = "prerequisites: {t: flow.yaml}"
    changed = load(tmp_path, text, ["prerequisites.t.recipe.train_cfg.max_iters=3"])["prerequisites"]["t"]
    assert changed == {"name": "flow", "recipe": {"train_cfg": {"max_iters": 3}, "seed": 1}}
    moved = load(tmp_path, text, ["prerequisites.t.run=elsewhere"])["prerequisites"]["t"]
    assert moved["run"] == "elsewhere" and moved["recipe"]["seed"] == 1
    other = load(tmp_path, text, [f"prerequisites.t={tmp_path / 'other.yaml'}"])["prerequisites"]["t"]
    assert other == {"name": "other", "recipe": {"seed": 2}}
    other = load(tmp_path, text, [f"prerequisites.t.recipe={tmp_path / 'other.yaml'}"])["prerequisites"]["t"]
    assert other == {"name": "other", "recipe": {"seed": 2}}
    path = tmp_path / "recipe.yaml"
    message = refused(path, ["prerequisites.u.recipe.seed=3"])
    assert message.startswith(f"{path}: prerequisites.u: no such prerequisite")


def test_cycles_of_prerequisites_are_refused(tmp_path):
    path = write(tmp_path, one="prerequisites: {two: two.yaml}", two="prerequisites: {one: one.yaml}")
    assert "prerequisites form a cycle" in refused(path) and f"{path} -> " in refused(path)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("flw.yaml", "prerequisites.t: recipe '{folder}/flw.yaml' does not exist; nearest match: 'flow'"),
        ("{recipe: flow.yaml, rn: x}", "prerequisites.t.rn: unknown key; nearest match: 'run'"),
        ("{recipe: flow.yaml, run: 3}", "prerequisites.t.run: found int 3, expected text"),
        ("{recipe: 3}", "prerequisites.t.recipe: found int 3, expected a recipe file"),
        ("{run: x}", "prerequisites.t: found a mapping, expected a recipe file, or 'recipe' and 'run'"),
        ("{recipe: {seed: 1}}", "prerequisites.t: 'name' is missing, the name of its run folder"),
    ],
)
def test_bad_prerequisites(tmp_path, entry, problem):
    path = write(tmp_path, recipe=f"prerequisites: {{t: {entry}}}", flow="seed: 1")
    assert refused(path) == f"{path}: {problem.format(folder=tmp_path)}"


# Round trip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_resolved_recipe_stands_alone(path, tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_DATA", "/mnt/some data")
    recipe = load_recipe(path, ["seed=7"])
    monkeypatch.delenv("GENFLOW_DATA")
    copy = tmp_path / "deep" / "recipe.yaml"
    copy.parent.mkdir()
    copy.write_text(dump_yaml(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe
    assert list(load_recipe(copy)) == list(recipe)  # the order of keys, too
