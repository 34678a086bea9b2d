"""The layers of the package: what may import what, as docs/architecture.md draws it."""

import ast
import re
from pathlib import Path

import pytest

import genflow

PACKAGE = Path(genflow.__file__).parent
KINDS = [
    "backbones",
    "codecs",
    "feature_encoders",
    "field_estimators",
    "flow_teachers",
    "guidance",
    "inverse_heads",
    "distribution_distances",
    "losses",
    "time_samplers",
]
#: From the bottom up; a room imports from the floors below its own, and from itself.
FLOORS = [
    ["errors"],
    ["condition", "draws", "processes", "ranges", "registry", "weights"],
    ["layers"],
    [*KINDS, "data"],
    ["generators"],
    ["evaluation", "methods"],
    ["config"],
    ["analysis", "inference"],
    ["runs"],
    ["engine"],
    ["benchmarks", "conversion", "demo", "export", "preparation", "reproduction", "sharing"],
    ["cli"],
    ["commands"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: Rooms that know components by their names: what they are about is one of them.
NAME_COMPONENTS = {"conversion", "preparation", "reproduction"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it; of genflow's, ``genflow.a.b`` and not names in b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def module_of(path: Path) -> str:
    """``genflow/a/b.py`` to ``a.b``, ``genflow/a/__init__.py`` to ``a``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


#: {module: modules of the package that it imports}, without ``genflow.``; the package itself imports all of them.
GRAPH = {
    module_of(path): {name.removeprefix("genflow.") for name in imports(path) if name.startswith("genflow.")}
    for path in sorted(PACKAGE.rglob("*.py"))
    if module_of(path)
}


def room_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def edges() -> list[tuple[str, str]]:
    return [(module, imported) for module, found in GRAPH.items() for imported in sorted(found)]


def test_imports_are_seen():
    assert {"flow_teachers.base", "generators.reverse", "registry"} <= GRAPH["methods.biflow"]
    assert "methods.base" in GRAPH["engine.preflight"] and "errors" in GRAPH["weights"]


def test_every_room_has_a_floor_and_every_floor_only_rooms_that_are_there():
    assert {room_of(module) for module in GRAPH} == set(FLOOR)


def test_the_page_draws_the_same_floors():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors, rooms = [], {}
    for number, names in re.findall(r"^\| (\d*) ?\| (`[^|]+`) \|", page, re.M):
        floors.append(int(number) if number else floors[-1])
        rooms |= {name.strip("/"): floors[-1] - 1 for name in re.findall(r"`([\w/]+)`", names)}
    assert rooms.pop("tools") == FLOOR["commands"] and rooms == FLOOR


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_no_import_runs_up(room):
    for module, imported in edges():
        if room_of(module) == room and room_of(imported) != room:
            below = FLOOR[room_of(imported)] < FLOOR[room]
            contract = room in KINDS and room_of(imported) in KINDS and imported.endswith(".base")
            assert below or contract, f"genflow.{module} imports genflow.{imported}, which is not below it"


def test_every_floor_is_needed_where_it_is():
    """A room that nothing above it imports would be out of place; the commands are what is started."""
    commands = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "commands").glob("*.py"))
    used = {room_of(imported) for module, imported in edges() if room_of(module) != room_of(imported)} | {"commands"}
    used |= set(re.findall(r"\bgenflow\.(\w+)", commands))  # some by importlib
    assert set(FLOOR) - used == set()


def test_no_circle():
    finished, trail = set(), []

    def visit(module):
        assert module not in trail, f"a circle: {' -> '.join([*trail[trail.index(module) :], module])}"
        if module in finished or module not in GRAPH:
            return
        trail.append(module)
        for imported in sorted(GRAPH[module]):
            visit(imported)
        finished.add(trail.pop())

    for module in GRAPH:
        visit(module)


def test_loose_files_serve_at_least_five_folders():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    for loose in set(FLOOR) - folders:
        users = {room_of(module) for module, imported in edges() if imported == loose} & folders
        assert len(users) >= 5, f"{loose}.py is used by {sorted(users)} only"


def test_components_are_seen_through_contracts():
    """Methods, the engine and the shared rooms name no component; a kind knows the others by their contracts."""
    for module, imported in edges():
        room, other = room_of(module), room_of(imported)
        if room in NAME_COMPONENTS or other not in KINDS or room == other:
            continue
        assert imported.endswith(".base"), f"genflow.{module} imports genflow.{imported}"


def test_nothing_in_the_package_imports_tools_or_tests():
    for path in PACKAGE.rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"tools", "tests"}, path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from genflow.losses import base", {"genflow.losses.base"}),
        ("def f():\n    from genflow.errors import UserError", {"genflow.errors"}),
        ("import genflow.draws", {"genflow.draws"}),
    ],
)
def test_the_reader_of_imports(tmp_path, source, expected):
    (tmp_path / "file.py").write_text(source)
    assert imports(tmp_path / "file.py") == expected
