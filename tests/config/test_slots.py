"""Values of a recipe against annotations: scalars, lists, choices, ranges, sections, slots and foreign constructors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional

import pytest
from torch import nn

from genflow.config import slots
from genflow.config.slots import Argument, Mismatch, Node, Reference, Section, check, check_section, signature_of
from genflow.errors import UserError, nearest, reason, shown
from genflow.losses.base import Loss
from genflow.losses.squared_error import SquaredError
from genflow.ranges import Range


@dataclass
class Inner:
    size: int
    name: str = "x"


@dataclass
class Outer:
    inner: Inner
    optional: Inner | None = None
    many: dict[str, Inner] = field(default_factory=dict)
    loss: Loss | None = None
    share: Annotated[float, Range(low=0, high=1)] = 0.5


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 1e-4, 1e-4),
        (bool, True, True),
        (str, "3", "3"),
        (int | None, None, None),
        (Optional[float], 2, 2.0),  # noqa: UP045
        (int | list[int], [1, 2], [1, 2]),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (list, [1, "a"], [1, "a"]),
        (dict, {"a": 1}, {"a": 1}),
        (Sequence[int], [1], [1]),
        (tuple[int, int], [1, 2], (1, 2)),
        (tuple[float, ...], [1, 2, 3], (1.0, 2.0, 3.0)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (Literal["a", 2], 2, 2),
        (Annotated[int, Range(low=1)], 1, 1),
        (Annotated[int, "a remark"], -1, -1),
        (Any, {"a": [1]}, {"a": [1]}),
        (object, {"type": "SquaredError", "x": "$name"}, {"type": "SquaredError", "x": "$name"}),
    ],
)
def test_values_that_fit(annotation, value, expected):
    checked = check(value, annotation, "path")
    assert checked == expected and type(checked) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, True, "path: found True, expected an integer"),
        (int, 3.0, "path: found 3.0, expected an integer"),
        (int, "3", "path: found '3', expected an integer; a number in quotes is text"),
        (float, "fast", "path: found 'fast', expected a number"),
        (float, "1e-4", "path: found '1e-4', expected a number; a number in quotes is text"),
        (float | None, "1e-4", "path: found '1e-4', expected a number or null; a number in quotes is text"),
        (float, False, "path: found False, expected a number"),
        (float, None, "path: found None, expected a number"),
        (float, [1.0], "path: found [1.0], expected a number"),
        (str, 3, "path: found 3, expected text; what looks like a number or a truth value is text in quotes"),
        (
            str | None,
            True,
            "path: found True, expected text or null; what looks like a number or a truth value is text in quotes",
        ),
        (float, float("inf"), "path: found inf, expected a number; it must be finite"),
        (float, 10**400, f"path: found {str(10**400)[:77]}..., expected a number; it must be finite"),
        (str, None, "path: found None, expected text"),
        (bool, 1, "path: found 1, expected true or false"),
        (bool, "on", "path: found 'on', expected true or false"),
        (int | None, "x", "path: found 'x', expected an integer or null"),
        (int | list[int], "x", "path: found 'x', expected an integer or a list"),
        (int | list[int], [1, "x"], "path.1: found 'x', expected an integer"),
        (list[int], 3, "path: found 3, expected a list"),
        (list[int], {"a": 1}, "path: found {'a': 1}, expected a list"),
        (list[list[int]], [[1], [True]], "path.1.0: found True, expected an integer"),
        (tuple[int, int], [1], "path: found 1 entries, expected 2"),
        (tuple[int, int], [1, 2, 3], "path: found 3 entries, expected 2"),
        (tuple[int, int], [1, 2.5], "path.1: found 2.5, expected an integer"),
        (dict[str, int], [1], "path: found [1], expected a mapping"),
        (dict[str, int], {"a": "b"}, "path.a: found 'b', expected an integer"),
        (Literal["layer", "rms"], "rmx", "path: found 'rmx', expected one of 'layer', 'rms'; nearest match: 'rms'"),
        (Literal["a", 1], True, "path: found True, expected one of 'a', 1"),
        (Literal["a"], None, "path: found None, expected one of 'a'"),
        (Literal["a"] | None, "b", "path: found 'b', expected one of 'a' or null"),
        (Annotated[int, Range(low=1)], 0, "path: found 0, expected an integer of at least 1"),
        (Annotated[float, Range(above=0)] | None, 0, "path: found 0, expected a number above 0 or null"),
        (Annotated[float, Range(0, 1)], float("nan"), "path: found nan, expected a number; it must be finite"),
        (int, "x" * 500, f"path: found 'x{'x' * 75}..., expected an integer"),
        (Inner, 3, "path: found 3, expected a section"),
        (Inner | None, 3, "path: found 3, expected a section or null"),
        (Loss, 3, "path: found 3, expected a loss: a mapping with 'type', or $name"),
        (Loss, "SquaredError", "path: found 'SquaredError', expected a loss: a mapping with 'type', or $name"),
        (Loss | None, 3, "path: found 3, expected a loss or null"),
        (Loss, {}, "path: 'type' is missing, expected the name of a loss"),
        (Loss | None, {"type": "SquaredEror"}, "path.type: found 'SquaredEror', expected the name of a loss; nearest"),
        (Loss, {"type": "TARFlow"}, "path.type: found 'TARFlow', which is a flow teacher, expected a loss"),
        (Loss, {"type": ["a"]}, "path.type: found ['a'], expected the name of a loss"),
        (Loss, {"type": None}, "path.type: found None, expected the name of a loss"),
        (list[Loss], [{"type": "SquaredError", "reduction": "sun"}], "path.0.reduction: found 'sun', expected one of"),
    ],
)
def test_values_that_do_not_fit(annotation, value, message):
    with pytest.raises(Mismatch) as caught:
        check(value, annotation, "path")
    assert str(caught.value).startswith(message) and str(caught.value).isprintable()
    if not message.endswith(("nearest", "loss", "one of")):
        assert str(caught.value) == message


def test_unknown_types_say_what_there_is_and_how_to_add_to_it():
    with pytest.raises(Mismatch) as caught:
        check({"type": "squarederror"}, Loss, "model.loss")
    message = str(caught.value)
    assert message.startswith("model.loss.type: found 'squarederror', expected the name of a loss; ")
    assert "nearest match: 'SquaredError'" in message and "AdaptiveWeighting, " in message
    assert message.endswith("; a component of your own needs its module in custom_imports")


def test_slots_become_nodes_and_references():
    node = check({"type": "AdaptiveWeighting", "power": 2, "loss": {"type": "SquaredError"}}, Loss, "a.b")
    assert isinstance(node, Node) and (node.path, node.kind, node.cls.__name__) == ("a.b", "loss", "AdaptiveWeighting")
    assert node.arguments["power"] == 2.0 and isinstance(node.arguments["loss"], Node)
    assert node.arguments["loss"].path == "a.b.loss"
    assert check("$shared", Loss, "a.b") == Reference("a.b", "shared", "loss")
    assert check("$shared", Loss | None, "a.b") == Reference("a.b", "shared", "loss")
    assert check("$shared", str, "a.b") == "$shared"
    assert list(slots.walk({"x": [node, {"y": Reference("p", "n", None)}]})) == [node, Reference("p", "n", None)]


def test_sections_check_their_keys_and_fill_defaults():
    section = check_section({"inner": {"size": 3}, "many": {"k": {"size": 4, "name": "z"}}}, Outer, "")
    built = slots.build(section, make=None, resolve=None)
    assert built == Outer(Inner(3), many={"k": Inner(4, "z")})
    nested = next(value for value in section.arguments.values() if isinstance(value, Section))
    assert nested.path == "inner"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "inner: missing, a recipe needs it (a section)"),
        ({"inner": {"size": 1}, "inne": 3}, "inne: unknown key; nearest match: 'inner'"),
        ({"inner": {}}, "inner.size: missing, inner needs it (an integer)"),
        ({"inner": {"sise": 1}}, "inner.sise: unknown key; nearest match: 'size'"),
        ({"inner": {"size": "x"}}, "inner.size: found 'x', expected an integer"),
        ({"inner": {"size": 1}, "optional": {"sze": 1}}, "optional.sze: unknown key; nearest match: 'size'"),
        ({"inner": {"size": 1}, "many": {"k": {"size": None}}}, "many.k.size: found None, expected an integer"),
        (
            {"inner": {"size": 1}, "loss": {"type": "SquaredError", "x": 1}},
            "loss.x: SquaredError has no argument 'x'; from a _base_? '_delete_: true' leaves it out",
        ),
        ({"inner": {"size": 1}, "share": 2}, "share: found 2, expected a number from 0 to 1"),
        ([], "found [], expected a section"),
    ],
)
def test_sections_that_do_not_fit(value, message):
    with pytest.raises(Mismatch) as caught:
        check_section(value, Outer, "")
    assert str(caught.value) == message


# Constructors


class Base(Loss):
    def __init__(self, scale: float, mode: Literal["a", "b"] = "a", *, strict: bool = False):
        super().__init__()


class Child(Base):
    def __init__(self, extra: int, **kwargs):
        super().__init__(scale=1.0, **kwargs)


class Grandchild(Child):
    pass


class Closed(Base):
    def __init__(self, only: int):
        super().__init__(scale=1.0)


class Unresolvable(Loss):
    def __init__(self, a: "NoSuchName", b: "nn.NoSuchClass" = None):  # noqa: F821
        super().__init__()


class Bare(Loss):
    pass


def test_signatures_follow_keyword_arguments_to_base_classes():
    expected = {
        "extra": Argument(int, True),
        "scale": Argument(float, False),  # Child may pass it on itself, as it does here
        "mode": Argument(Literal["a", "b"], False, "a"),
        "strict": Argument(bool, False, False),
    }
    assert signature_of(Child) == expected == signature_of(Grandchild)
    assert signature_of(Closed) == {"only": Argument(int, True)}
    assert signature_of(Base)["scale"] == Argument(float, True)
    assert signature_of(Bare) == {}


def test_annotations_that_cannot_be_resolved_allow_anything():
    assert signature_of(Unresolvable) == {"a": Argument(Any, True), "b": Argument(Any, False)}


def test_every_argument_of_a_built_in_component_is_typed():
    untyped = []
    for kind in slots.KINDS.values():
        for name, cls in kind.components().items():
            signature = signature_of(cls)  # of mmengine's and torch's, too
            if cls.__module__.startswith("genflow."):
                assert set(kind.supplied) <= set(signature)
                arguments = {key: entry.annotation for key, entry in signature.items() if key not in kind.supplied}
                untyped += [f"{name}.{key}" for key, hint in arguments.items() if hint is Any]
    assert untyped == []


def test_untyped_arguments_still_hold_components():
    value = {"a": {"type": "SquaredError"}, "b": ["$x", {"type": "Foreign", "size": 3}], "c": "$"}
    checked = check(value, Any, "p")
    assert isinstance(checked["a"], Node) and checked["a"].path == "p.a"
    assert checked["b"] == [Reference("p.b.0", "x", None), {"type": "Foreign", "size": 3}]
    listed = check([{"type": "SquaredError"}], list, "p")
    assert isinstance(listed[0], Node) and listed[0].path == "p.0"
    with pytest.raises(Mismatch, match=r"p\.a\.x: SquaredError has no argument 'x'"):
        check({"a": {"type": "SquaredError", "x": 1}}, Any, "p")


def test_what_the_engine_supplies_is_not_for_the_recipe():
    for kind, component, name in (
        ("optimizer", {"type": "AdamW", "params": 3}, "params"),
        ("parameter scheduler", {"type": "WarmupLR", "warmup_iters": 1, "optimizer": 3}, "optimizer"),
    ):
        slot = type("Slot", (), {"kind": kind})
        with pytest.raises(Mismatch, match=f"p.{name}: {component['type']} has no argument '{name}'"):
            check(component, slot, "p")


def test_build_constructs_by_injection():
    node = check({"type": "AdaptiveWeighting", "loss": "$shared"}, Loss, "p")
    shared = SquaredError()

    def make(node):
        return node.cls(**{key: slots.build(value, make, lambda _: shared) for key, value in node.arguments.items()})

    assert slots.build([node], make, None)[0].loss is shared
    assert slots.build((1, {"a": node}), make, None)[1]["a"].loss is shared


def test_a_sections_own_check_names_its_path():
    @dataclass
    class Picky:
        a: int

        def __post_init__(self):
            raise ValueError("a is wrong")

    with pytest.raises(Mismatch, match=r"^here\.there: a is wrong$"):
        slots.build(check_section({"a": 1}, Picky, "here.there"), None, None)


# Messages


def test_messages_are_one_line_whatever_is_in_them():
    assert str(UserError("a\nb\r\n\x1b[31mc\x00\u2028")) == "a b   [31mc  "


def test_nearest_ignores_case_and_finds_nothing_far_away():
    assert nearest("sgd", ["Adam", "SGD"]) == "; nearest match: 'SGD'"
    assert nearest(3, ["Adam", 31]) == "; nearest match: '31'"
    assert nearest("entirely", ["Adam", "SGD"]) == nearest("x", []) == ""


def test_shown_shortens():
    assert shown("a") == "'a'"
    assert len(shown(list(range(1000)))) == 80 and shown(list(range(1000))).endswith("...")


def test_reason_is_the_first_line_and_names_what_is_no_value_error():
    assert reason(ValueError("a\nb")) == "a"
    assert reason(ValueError()) == "ValueError"
    assert reason(ImportError("no module")) == "no module"
    try:
        {}["key"]
    except KeyError as error:
        line = error.__traceback__.tb_lineno
        assert reason(error) == f"KeyError (test_slots.py, line {line}): 'key'"
