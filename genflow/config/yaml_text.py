"""Safe YAML 1.2: text to plain dictionaries, lists and scalars; nothing in it is executed."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

from genflow.errors import UserError, kind_of

_MOST_VALUES, _MOST_LETTERS, _MOST_LEVELS = 100_000, 2**22, 64


class _Constructor(SafeConstructor):
    """Scalars of YAML 1.2's core schema; dates and ``=``, which ruamel knows beyond it, are text."""


for _name in ("timestamp", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_name}", _Constructor.construct_yaml_str)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 text into plain dictionaries with text as keys, lists and scalars, none of them shared.

    Raises:
        UserError: a syntax error, a duplicate key, a tag or too much of everything, with ``source`` and the line.
    """
    try:
        sizes = _Sizes()
        for event in safe_yaml().parse(text):
            problem = sizes.add(event) or _find_problem(event)
            if problem:
                raise UserError(f"{source}:{event.start_mark.line + 1}: not a valid recipe: {problem}")
        return _unshared(safe_yaml().load(text), source)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: not a valid recipe: {' '.join(str(problem).split())}") from None
    except UserError:
        raise
    except ValueError as error:  # a number that Python refuses
        raise UserError(f"{source}: not a valid recipe: {error}") from None


def safe_yaml() -> YAML:
    """A parser and writer of plain values."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


class _Sizes:
    """How much a text becomes once every alias is a value of its own: values, letters and levels."""

    def __init__(self):
        self.of_anchors: dict[str, tuple[int, int]] = {}
        #: Of every open collection: its anchor, values and letters.
        self.open: list[list[Any]] = [[None, 0, 0]]

    def add(self, event: Event) -> str | None:
        """Count an event; says if the text is too much."""
        anchor = getattr(event, "anchor", None)
        if isinstance(event, CollectionStartEvent):
            self.open.append([anchor, 0, 0])
        elif isinstance(event, CollectionEndEvent):
            self._enter(*self.open.pop())
        elif isinstance(event, AliasEvent):
            self._enter(None, *self.of_anchors.get(anchor, (1, 0)))
        elif isinstance(event, ScalarEvent):
            self._enter(anchor, 0, len(event.value))
        _, values, letters = self.open[-1]
        if len(self.open) > _MOST_LEVELS:
            return "too deeply nested"
        return "too large" if values > _MOST_VALUES or letters > _MOST_LETTERS else None

    def _enter(self, anchor: str | None, values: int, letters: int) -> None:
        if anchor is not None:
            self.of_anchors[anchor] = (values + 1, letters)
        self.open[-1][1] += values + 1
        self.open[-1][2] += letters


def _find_problem(event: Event) -> str | None:
    """What is valid YAML but no recipe."""
    if getattr(event, "version", None):
        return "this is YAML 1.2"
    if isinstance(event, NodeEvent) and getattr(event, "ctag", None):
        tag = str(event.ctag).replace("tag:yaml.org,2002:", "!!")
        return f"found the tag '{tag}', expected plain values; nothing in a recipe is executed"
    return None


def _unshared(value: Any, source: str) -> Any:
    """A copy in which every alias is a value of its own, so that no override changes two places.

    Aliases inside themselves end at a limit.
    """
    left = _MOST_VALUES

    def copied(entry: Any, level: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or level > _MOST_LEVELS:
            raise UserError(f"{source}: not a valid recipe: too large or too deeply nested")
        if isinstance(entry, list):
            return [copied(item, level + 1) for item in entry]
        if not isinstance(entry, dict):
            return entry
        for key in entry:
            if not isinstance(key, str):
                raise UserError(f"{source}: key {key!r} is {kind_of(key)}, expected text")
        return {key: copied(item, level + 1) for key, item in entry.items()}

    return copied(value, 0)
