"""What README and docs say exists: files they link, commands they show, and no placeholder left."""

import argparse
import glob
import itertools
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
#: A command in running text: a tool, then its arguments.
SPAN = re.compile(r"`((?:[^`\n]*\s)?tools/(?:slurm/)?\w+\.(?:py|sbatch)\s[^`]+)`")
TOOL = re.compile(r"(?:^|/)tools/(?:slurm/)?(\w+)\.(?:py|sbatch)$")
#: Options of Slurm, pip and pytest, which pages name without the command.
OTHERS_OPTIONS = {"--signal", "--requeue", "--kill-on-bad-exit"}


class ParsedError(Exception):
    """Raised where a command would begin to work."""

    def __init__(self, parser: argparse.ArgumentParser, arguments: argparse.Namespace | None):
        self.parser = parser
        self.arguments = arguments


@pytest.fixture
def parsed(monkeypatch):
    """Parse a tool's arguments with its own parser; without any, return the parser."""
    real = argparse.ArgumentParser.parse_args

    def parse(tool: str, arguments: list[str] | None) -> ParsedError:
        def stop(parser, *_):
            raise ParsedError(parser, None if arguments is None else real(parser, arguments))

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py"])
        with pytest.raises(ParsedError) as found:
            import_module(f"genflow.commands.{tool}").main()
        return found.value

    return parse


def commands(text: str) -> list[list[str]]:
    """The words of every command of a page, in blocks of code and in running text."""
    lines = []
    for language, block in FENCE.findall(text):
        if language in ("", "bash"):
            lines += block.replace("\\\n", " ").splitlines()
    lines += [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
    words = itertools.chain.from_iterable(line.split(" && ") for line in lines)
    return [shlex.split(line, comments=True) for line in words if re.search(r"tools/(slurm/)?\w+\.(py|sbatch)\s", line)]


def tool_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """``torchrun ... tools/train.py recipes/*.yaml`` to ``train`` and its arguments, expanded as a shell would."""
    place = next(index for index, word in enumerate(words) if TOOL.search(word))
    name = TOOL.search(words[place])[1]
    return name, [path for word in words[place + 1 :] for path in expanded(word)]


def expanded(word: str) -> list[str]:
    """A word with braces and stars as the shell takes it."""
    brace = re.fullmatch(r"(recipes/[^{=]*)\{([\w,]+)\}(.*)", word)
    if brace:
        start, middle, end = brace.groups()
        return [path for part in middle.split(",") for path in expanded(f"{start}{part}{end}")]
    return sorted(glob.glob(word, root_dir=ROOT)) or [word] if "*" in word else [word]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return choices[0] if choices else {}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a parser and of the parsers of its subcommands."""
    return set(parser._option_string_actions).union(*(options(inner) for inner in subcommands(parser).values()))


def check(words: list[str], text: str, parsed) -> None:
    """Parse a command, and see that recipes, runs, averages and settings that it names are there.

    Args:
        words: of the command.
        text: of its page, which may tell its reader to save a recipe.
        parsed: the fixture.
    """
    tool, arguments = tool_and_arguments(words)
    assert (ROOT / "tools" / f"{tool}.py").is_file(), tool
    if TOOL.search(words[0]) or "..." in arguments:  # a part of a command
        parser = parsed(tool, None).parser
        assert {word for word in arguments if word.startswith("--")} <= options(parser)
        assert not subcommands(parser) or arguments[0] in subcommands(parser)
        return
    arguments = [f"{word}.yaml" if word == "RECIPE" else word for word in arguments]  # a bare name has to be there
    given = vars(parsed(tool, arguments).arguments)
    keys = ("recipe", "recipes", "run", "runs", "subject")
    named = [Path(name) for key in keys for name in as_list(given.get(key)) if isinstance(name, str | Path)]
    for name in named:
        if is_placeholder(name.stem) or f"`{name.stem}.yaml`" in text:  # "save this as `photos.yaml`"
            continue
        recipe = ROOT / (name if name.suffix == ".yaml" else f"recipes/{name.name}.yaml")
        assert recipe.is_file(), f"{recipe}: no such recipe"
        check_settings(recipe, given)


def check_settings(recipe: Path, given: dict) -> None:
    from genflow.config.graph import ComponentGraph
    from genflow.config.recipe import load_recipe
    from genflow.runs.evaluate import Setting
    from genflow.runs.sweep import settings_of

    if given.get("cfg_options"):
        ComponentGraph.load(recipe, given["cfg_options"])
    averages = list(load_recipe(recipe).get("ema", {}))
    if given.get("average"):
        assert given["average"] in [*averages, "none"], f"{recipe.name} has {averages}"
    if given.get("sweep"):
        settings_of(given["sweep"], Setting(0), averages)


def as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def is_placeholder(name: str) -> bool:
    """RUN, RECIPE, $R: for the reader to fill in."""
    return name.isupper()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_its_tool_takes(page, parsed, capsys):
    text = page.read_text(encoding="utf-8")
    for words in commands(text):
        try:
            check(words, text, parsed)
        except (SystemExit, AssertionError, ValueError) as error:
            pytest.fail(f"{page.name}: {shlex.join(words)}\n{error} {capsys.readouterr().err}", pytrace=False)


def test_commands_are_seen():
    found = [shlex.join(words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
    assert len(found) >= 80
    for part in ("torchrun --nproc-per-node 8 tools/evaluate.py", "sbatch --nodes=8", "tools/sample.py RUN --steps 2"):
        assert any(part in command for command in found), part


@pytest.mark.parametrize(
    "command",
    [
        "python tools/train.py recipes/biflow_digits.yaml --reume",
        "python tools/train.py recipes/biflow_digit.yaml",
        "python tools/train.py recipes/biflow_digits.yaml --cfg-options train_cfg.max_iter=5",
        "python tools/sample.py work_dirs/biflow_digit --num 4 --out a.png",
        "python tools/sample.py work_dirs/biflow_digits --num four --out a.png",
        "python tools/sample.py work_dirs/pmf_digits --average half_life_4k --out a.png",
        "python tools/evaluate.py work_dirs/pmf_digits --sweep guidence=1:2:0.5",
        "python tools/reproduce.py biflow-toys",
        "python tools/prepare_data.py statistics ... --extracter work_dirs/RUN",
        "tools/prepare_data.py verification ...",
        "python tools/prepare.py images photos out --size 64",
        "sbatch tools/slurm/train.sbatch recipes/biflow_digits.yaml --resume-it",
    ],
)
def test_a_wrong_command_is_found(command, parsed):
    (words,) = commands(f"`{command}`\n" if command.startswith("tools/") else f"```bash\n{command}  # a comment\n```\n")
    with pytest.raises((SystemExit, AssertionError, ValueError, ModuleNotFoundError)):
        check(words, "", parsed)


def test_options_named_alone_exist(parsed):
    known = set(OTHERS_OPTIONS)
    for path in (ROOT / "tools").glob("*.py"):
        known |= options(parsed(path.stem, None).parser)
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        named = {name for span in re.findall(r"`(--[^`]+)`", text) for name in re.findall(r"(?<!\S)--[\w-]+", span)}
        assert named <= known, f"{page.name}: {named - known}"


def test_links_resolve():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())]
    local = [(page, link) for page, link in links if not link.startswith("http")]
    assert len(local) >= 100
    for page, link in local:
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_files_named_in_the_readme_exist():
    named = set(re.findall(r"\b(?:tools|recipes)/[\w/]+\.(?:py|yaml)", (ROOT / "README.md").read_text()))
    assert {"tools/train.py", "recipes/biflow_digits.yaml"} <= named
    for name in named:
        assert (ROOT / name).is_file(), name


def test_no_placeholder_is_left():
    for page in PAGES:
        assert not re.search(r"\b(TODO|TIME|RESULTS|MERMAID|XXX)\b", page.read_text()), page.name


def test_the_python_of_the_readme_runs(finished_run, tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "work_dirs").mkdir()
    (tmp_path / "work_dirs" / "biflow_digits").symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == (8, 1, 8, 8) and names["images"].abs().max() <= 1
    assert (tmp_path / "threes.png").stat().st_size > 0
