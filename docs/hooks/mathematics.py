"""Blocks of mathematics as MathML, which browsers draw by themselves: no script, no font to fetch."""

import re
from collections.abc import Iterator

from mkdocs.exceptions import Abort

try:
    from latex2mathml.converter import convert
except ImportError:
    raise Abort("formulas need the package 'latex2mathml': pip install -e \".[docs]\"") from None

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What opens and closes a group, and the spaces between formulas of a block.
TOKEN = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\q?quad(?![a-z])|\\.|[{}]")

FUNCTION = re.compile(r"<mi>(?:cos|log|sin)</mi>(?!<m(?:o|row><mo)\b)")


def on_page_markdown(markdown: str, **_) -> str:
    """Every block of the page, which GitHub draws by itself."""
    return BLOCK.sub(lambda found: f"\n{drawn(found[1])}\n", markdown)


def drawn(block: str) -> str:
    """A block of LaTeX as one line of HTML: its formulas side by side, each in MathML."""
    formulas = "".join(f"<span>{mathml(formula)}</span>" for formula in apart(block))
    return f'<div class="mathematics">{formulas}</div>'


def mathml(formula: str) -> str:
    """One formula; a thin space follows names of functions without brackets, which the converter leaves out."""
    return FUNCTION.sub(r'\g<0><mspace width="0.17em"/>', convert(formula, display="block"))


def apart(block: str) -> Iterator[str]:
    """The formulas of a block, which wide spaces outside of brackets separate."""
    block = " ".join(block.split())
    depth = start = 0
    for found in TOKEN.finditer(block):
        token = found.group()
        depth += (token in ("{", r"\left")) - (token in ("}", r"\right"))
        if token in (r"\quad", r"\qquad") and depth == 0:
            yield block[start : found.start()].strip()
            start = found.end()
    yield block[start:].strip()
