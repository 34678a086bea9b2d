"""The documentation as a site: it builds without a warning, no link is broken, and it shows the code's own lines."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
SYSTEMS = {"B": "biflow", "P": "pmf", "D": "drifting"}


def hook(name: str):
    """A module of ``docs/hooks``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """Targets of a page's links, what it loads, and the names of its places."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.names = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.names |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_no_link_or_picture_is_broken(site, pages):
    assert {site / "index.html", site / "biflow.html", site / "api" / "loss.html"} <= set(pages)
    followed = 0
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            if re.match(r"(https?|mailto|data):", target):
                continue
            place, _, name = unquote(target).partition("#")
            if path.name == "404.html" and place.startswith("/"):
                place = str(site) + place
            found = (path.parent / place).resolve() if place else path
            assert found.is_file(), f"{path.name}: {target}"
            if name and found.suffix == ".html":
                assert name in pages[found].names, f"{path.name}: {target}"
            followed += 1
    assert followed > 1000


def test_nothing_is_loaded_from_elsewhere(pages):
    elsewhere = {target for page in pages.values() for target in page.loaded if re.match(r"(https?:)?//", target)}
    assert not elsewhere


def test_blocks_are_drawn(site):
    for path in (ROOT / "docs").glob("*.md"):
        source, built = path.read_text(encoding="utf-8"), (site / f"{path.stem}.html").read_text(encoding="utf-8")
        assert built.count('class="mathematics"') == source.count("```math\n"), path.name
        assert built.count('class="mermaid"') == source.count("```mermaid\n"), path.name
        assert len(re.findall(r'<details class="code"', built)) == len(hook("source_lines").LINK.findall(source)), (
            path.name
        )


def test_every_component_has_its_place_in_the_reference(site):
    reference = hook("api_pages")
    places = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    names = [name for found in reference.components().values() for name in found] + reference.entry_points()
    assert {"genflow.losses.squared_error.SquaredError", "genflow.runs.folder.open_run"} <= set(names)
    for name in [*names, "genflow.losses.base.Loss.forward", "genflow.generators.base.Generator.sample"]:
        assert f'id="{name}"' in places, name


def test_the_reference_reads_the_registries_as_they_are():
    from genflow.registry import KINDS

    reference = hook("api_pages")
    assert list(reference.kinds().values()) == list(KINDS)
    for registry, kind in reference.kinds().items():
        ours = {cls for cls in KINDS[kind].module_dict.values() if cls.__module__.startswith("genflow.")}
        assert {f"{cls.__module__}.{cls.__name__}" for cls in ours} <= set(reference.components()[registry])


@pytest.mark.parametrize("letter", SYSTEMS)
def test_every_equation_names_the_lines_that_compute_it(letter):
    source = hook("source_lines")
    text = (ROOT / "docs" / f"{SYSTEMS[letter]}.md").read_text(encoding="utf-8")
    parts = re.split(rf"^(?=\*\*\({letter}\d+\))", text, flags=re.MULTILINE)[1:]
    numbers = [int(number) for number in re.findall(rf"\*\*\({letter}(\d+)\)", text)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 15
    for part in parts:
        links = source.PARAGRAPH.search(part)
        assert links, f"no line of code: {part[:60]}"
        for symbol, path in source.LINK.findall(links.group()):
            assert re.match(r"(@.*\n)*(def|class) ", source.lines_of(symbol, path)), symbol


@pytest.mark.parametrize("letter", SYSTEMS)
def test_equations_that_the_code_cites_exist(letter):
    page = f"{SYSTEMS[letter]}.md"
    known = set(re.findall(rf"\*\*\(({letter}\d+)\)", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "genflow").rglob("*.py"))
    cited = set(re.findall(rf"docs/{page}, ({letter}\d+)", code))
    assert len(cited) >= 10 and cited <= known, cited - known


@pytest.mark.parametrize(
    ("symbol", "path"),
    [
        ("patchify", "genflow/layers/gone.py"),
        ("gone", "genflow/layers/patches.py"),
        ("Loss.gone", "genflow/losses/base.py"),
    ],
)
def test_a_symbol_that_is_gone_is_an_error(symbol, path):
    with pytest.raises(LookupError, match=re.escape(path)):
        hook("source_lines").lines_of(symbol, path)


def test_lines_are_without_docstring_and_indentation():
    lines = hook("source_lines").lines_of("Loss.forward", "genflow/losses/base.py")
    assert lines == "def forward(self, prediction: Tensor, target: Tensor) -> Tensor:\n    raise NotImplementedError"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[page](pmf.md#the-toy)", "[page](pmf.md#the-toy)"),
        ("[read](../README.md)", "[read](quickstart.md)"),
        ("![drawing](images/a.png)", "![drawing](images/a.png)"),
        ("[always [0, 1]](../recipes/a.yaml)", "always [0, 1]"),
        ("[file.py](../genflow/file.py)", "`file.py`"),
        ("[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)"),
    ],
)
def test_links_that_leave_the_docs(link, expected):
    rewritten = hook("repository").rewritten
    assert rewritten(link, "docs/biflow.md", None) == expected
    there = "https://example.org/genflow/blob/main"
    assert (
        rewritten("[file.py](../genflow/file.py)", "docs/biflow.md", there[:-10])
        == f"[file.py]({there}/genflow/file.py)"
    )


def test_formulas_stand_apart_at_wide_spaces_outside_of_brackets():
    apart = hook("mathematics").apart
    assert list(apart(r"a = b, \qquad \left(c \quad d\right) \quad \mathrm{e \quad f}")) == [
        "a = b,",
        r"\left(c \quad d\right)",
        r"\mathrm{e \quad f}",
    ]


def test_the_gallery_shows_every_picture():
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    pictures = {f"images/{path.name}" for path in (ROOT / "docs" / "images").iterdir()}
    assert pictures == set(re.findall(r"\]\((images/[^)]+)\)", gallery))
