"""Links of the pages that leave ``docs/``, which are right on GitHub, made right in the site.

Pages of the root (README and others) become pages of the site. Links to other files of the repository lead to
``repo_url`` of ``mkdocs.yml``; while that is empty, the link's text alone is shown.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
#: Pages of the root, and where they lie in the site.
ROOT_PAGES = {
    "README.md": "quickstart.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(
    r"(?P<picture>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)
#: A link's text that is the name of a file.
FILE_NAME = re.compile(r"[\w./-]+\.\w+|[A-Z]+")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """The pages of the root enter the site."""
    for name, place in ROOT_PAGES.items():
        content = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page, config, **_) -> str:
    """The page's links, outside of its blocks of code."""
    place = page.file.src_uri
    if place.startswith("api/"):
        return markdown
    origin = {there: name for name, there in ROOT_PAGES.items()}.get(place, f"docs/{place}")
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [rewritten(markdown[end : fence.start()], origin, config.repo_url), fence.group()]
        end = fence.end()
    return "".join([*parts, rewritten(markdown[end:], origin, config.repo_url)])


def rewritten(text: str, origin: str, repo_url: str | None) -> str:
    """``text`` of the file ``origin`` of the repository with its links made for the site."""

    def replace(found: re.Match) -> str:
        target, anchor = found["target"], found["anchor"] or ""
        if re.match(r"\w+:", target):
            return found.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if path in ROOT_PAGES:
            return f"{found['picture']}[{found['text']}]({ROOT_PAGES[path]}{anchor})"
        if path.startswith("docs/"):
            return f"{found['picture']}[{found['text']}]({path.removeprefix('docs/')}{anchor})"
        if repo_url:
            return f"[{found['text']}]({repo_url.rstrip('/')}/blob/main/{path})"
        return f"`{found['text']}`" if FILE_NAME.fullmatch(found["text"]) else found["text"]

    return LINK.sub(replace, text)
