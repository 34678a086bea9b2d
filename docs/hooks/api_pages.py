"""The API reference: a page for each kind of component, found in the source, which is parsed and never imported.

The kinds are those of ``genflow/registry.py``, their components what is registered with them, their contracts what
their folder's ``base.py`` holds. ``mkdocstrings`` makes the pages' text of docstrings and signatures.
"""

import ast
import re
from functools import cache
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "genflow"
GENERATOR = "genflow.generators.base.Generator"
ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>(~?)([\w.]+)</code>")


@cache
def kinds() -> dict[str, str]:
    """{registry: the kind in words}, in the order of ``registry.py``."""
    calls = [
        (node.targets[0].id, node.value)
        for node in _tree(PACKAGE / "registry.py").body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    ]
    return {name: call.args[0].value for name, call in calls if _name(call.func) == "KindRegistry"}


@cache
def components() -> dict[str, list[str]]:
    """{registry: full names of the classes registered with it}."""
    found = {registry: [] for registry in kinds()}
    for path in sorted(PACKAGE.rglob("*.py")):
        decorated = ".register_module()" in path.read_text(encoding="utf-8")
        for node in _tree(path).body if decorated else ():
            for registry in _registries(node):
                found[registry].append(f"{_module(path)}.{node.name}")
    return found


def contracts(registry: str) -> list[str]:
    """Modules that hold the contracts of a kind: ``base.py`` of a folder, with a class that says so."""
    says = f'kind = "{kinds()[registry]}"'
    return [_module(path) for path in sorted(PACKAGE.glob("*/base.py")) if says in path.read_text(encoding="utf-8")]


def entry_points() -> list[str]:
    """Full names of what ``import genflow`` gives."""
    (modules,) = (
        ast.literal_eval(node.value)
        for node in _tree(PACKAGE / "__init__.py").body
        if isinstance(node, ast.Assign) and _name(node.targets[0]) == "_MODULES"
    )
    return [f"genflow.{module}.{name}" for name, module in modules.items()]


def pages() -> dict[str, str]:
    """{place in the site: Markdown}."""
    written = {"api/python.md": _python_page(), "api/generators.md": _generators_page()}
    rows = []
    for registry, kind in kinds().items():
        names = components()[registry]
        if not names:  # hooks are mmengine's, or a user's
            continue
        place = f"api/{kind.replace(' ', '_')}.md"
        written[place] = _kind_page(registry, kind, names)
        shown = ", ".join(f"`{name.rsplit('.', 1)[1]}`" for name in names)
        rows.append(f"| [{kind}]({Path(place).name}) | `{registry}` | {shown} |")
    return {"api/index.md": _index_page(rows), **written}


def on_config(config):
    """The pages enter the navigation, below the entry that holds the index."""
    kinds.cache_clear()  # `mkdocs serve` builds again when the source has changed
    components.cache_clear()
    section = config.nav[-1]["API reference"]
    section += [{_title(place): place} for place in pages() if place not in section]
    return config


def on_files(files, config):
    """The pages enter the site."""
    for place, content in pages().items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_content(html: str, page, **_) -> str:
    """Docstrings' roles, ``:class:`~genflow.draws.draws.Draws```, as links where the site has a place for them."""

    def link(found: re.Match) -> str:
        short, name = found.groups()
        text = f"<code>{name.rsplit('.', 1)[-1] if short else name}</code>"
        return f'<autoref optional identifier="{name}">{text}</autoref>' if name.startswith("genflow.") else text

    return ROLE.sub(link, html) if page.file.src_uri.startswith("api/") else html


def _index_page(rows: list[str]) -> str:
    return "\n".join(
        [
            "# API reference",
            "",
            "From docstrings and signatures. What a kind has to do is its contract; how to add a component of your own",
            "is on [custom_components.md](../custom_components.md). [In Python](python.md) has runs, sampling, recipes",
            "and random numbers, [generators](generators.md) what methods build and recipes do not name.",
            "",
            "| kind | registry | components |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _python_page() -> str:
    names = [name for name in entry_points() if not name.startswith("genflow.generators.")]
    words = f"What `import genflow` gives, beside [`Generator`](generators.md#{GENERATOR}), whose"
    words += f" [`sample`](generators.md#{GENERATOR}.sample) makes images."
    return "\n\n".join(["# In Python", words, *(f"::: {name}" for name in names), ""])


def _generators_page() -> str:
    modules = [_module(path) for path in sorted((PACKAGE / "generators").glob("*.py")) if path.stem != "__init__"]
    blocks = [_whole(module) for module in sorted(modules, key=lambda module: not module.endswith(".base"))]
    return "\n\n".join(["# Generators", *blocks, ""])


def _kind_page(registry: str, kind: str, names: list[str]) -> str:
    parts = [f"# {kind.capitalize()}", f"Registered with `{registry}`; a recipe names one as `type:`."]
    parts += ["## Contract", *(_whole(module, 3) for module in contracts(registry))] if contracts(registry) else []
    brief = "\n    options: {heading_level: 3, members: false}"
    return "\n\n".join([*parts, "## Components", *(f"::: {name}{brief}" for name in names), ""])


def _whole(module: str, level: int = 2) -> str:
    return (
        f"::: {module}\n    options: {{heading_level: {level}, show_root_heading: false, show_root_toc_entry: false}}"
    )


def _title(place: str) -> str:
    words = Path(place).stem.replace("_", " ")
    return "In Python" if words == "python" else words.capitalize()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _registries(node: ast.stmt) -> list[str]:
    """Registries in a class's decorators, ``@LOSSES.register_module()``."""
    calls = [call.func for call in getattr(node, "decorator_list", ()) if isinstance(call, ast.Call)]
    return [_name(call.value) for call in calls if isinstance(call, ast.Attribute) and call.attr == "register_module"]
