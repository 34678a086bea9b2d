"""The lines of a run's ``scalars.jsonl``."""

import json
from typing import Any


def read_line(text: bytes) -> dict[str, Any] | None:
    """What an update left, ``step`` among it; None for lines of another kind, and for one that is torn."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
