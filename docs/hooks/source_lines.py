"""Lines of the package beside the equations that they compute, found by their symbol when the site is built.

A paragraph of a page such as ::

    Code: [`FlowBlock.forward`](../genflow/flow_teachers/flow_block.py),
    [`patchify`](../genflow/layers/patches.py)

is a list of links on GitHub; in the site each link becomes a box with that function's present lines.
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./(genflow/[\w/]+\.py)\)")
PARAGRAPH = re.compile(rf"^Code: {LINK.pattern}(?:,\s{LINK.pattern})*\n", re.MULTILINE)
#: Longer functions are boxes that the reader opens.
OPEN_LINES = 12


def on_page_markdown(markdown: str, **_) -> str:
    """Every ``Code:`` paragraph as boxes; errors as :func:`lines_of`."""
    return PARAGRAPH.sub(lambda found: "".join(box(*link) for link in LINK.findall(found.group())), markdown)


def box(symbol: str, path: str) -> str:
    """One symbol's lines as Markdown of a box that folds."""
    code = lines_of(symbol, path)
    sign = "???+" if code.count("\n") < OPEN_LINES else "???"
    fenced = textwrap.indent(f"```python\n{code}\n```\n", "    ")
    return f'\n{sign} code "{symbol} in {path}"\n{fenced}\n'


def lines_of(symbol: str, path: str) -> str:
    """The present lines of ``name``, or ``Class.name``, in a file below the root, without docstring and indentation.

    A name is that of a function, a class or a constant.

    Raises:
        LookupError: the file or the symbol is not there.
    """
    file = ROOT / path
    if not file.is_file():
        raise LookupError(f"{path}: no such file, which a page wants to show")
    text = file.read_text(encoding="utf-8")
    node = ast.parse(text)
    for name in symbol.split("."):
        node = next((child for child in node.body if name in _names(child)), None)
        if node is None:
            raise LookupError(f"{path}: no '{symbol}', which a page wants to show")
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        words = node.body[0]
        del lines[words.lineno - first : words.end_lineno - first + 1]
    return textwrap.dedent("\n".join(lines)).rstrip()


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    return {getattr(node, "name", "")} - {""}
