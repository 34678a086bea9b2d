"""Names of weights, turned into others."""

import re
from collections.abc import Mapping


def translate(name: str, names: Mapping[str, str]) -> str | None:
    """``name`` by the first entry of ``names`` that fits, new ones by old; None: there is none.

    Braces hold numbers that both share.
    """
    for old, new in names.items():
        match = re.fullmatch(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
        if match:
            return new.format(*match.groups())
    return None
