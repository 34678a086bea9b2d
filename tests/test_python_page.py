"""docs/python.md and the examples in docstrings do what they show."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import genflow

PACKAGE = Path(genflow.__file__).parent
PAGE = PACKAGE.parent / "docs" / "python.md"


def test_the_page(finished_run, tmp_path, monkeypatch):
    (tmp_path / "work_dirs").mkdir()
    (tmp_path / "work_dirs" / "biflow_digits").symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    found = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    said = []
    failed, tried = doctest.DocTestRunner().run(found, out=said.append)
    assert failed == 0, "".join(said)
    assert tried == len(re.findall("^>>> ", text, re.MULTILINE)) > 20
    assert (tmp_path / "three.png").is_file() and (tmp_path / "threes.png").is_file()


def test_docstrings():
    files = [path for path in PACKAGE.rglob("*.py") if re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.M)]
    assert len(files) >= 3
    for path in files:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        result = doctest.testmod(import_module(name))
        assert result.failed == 0 and result.attempted > 0, name
