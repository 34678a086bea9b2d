"""What the README says exists: files it links, commands it shows, and no placeholder left."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_links_resolve():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    local = [(page, link) for page, link in links if not link.startswith("http")]
    assert len(local) >= 4
    for page, link in local:
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_commands_name_files_that_exist():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\b(?:tools|recipes)/[\w/]+\.(?:py|yaml)", text))
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
