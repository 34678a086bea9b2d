"""The classes that command-line options name, by number or by name."""

import re
from collections.abc import Sequence

from genflow.errors import UserError, nearest

#: What comes before a name that is a number, or a number that is a name.
_NAME, _NUMBER = "name=", "number="


def find_classes(
    option: str, given: Sequence[str], num_classes: int, names: Sequence[str] = (), least: int = 0
) -> list[int]:
    """The numbers of classes.

    A word is a class's name or its number. Where it is the name of one and the number of another, it must say which.

    Args:
        option: that names them, for messages.
        given: words such as ``cats``, ``3``, ``name=3``, ``number=3``.
        num_classes: of the generator.
        names: of its classes in their order; empty if they have none.
        least: the smallest number that is allowed; -1 where "no class" is one.

    >>> find_classes("--labels", ["dogs", "0"], 2, ["cats", "dogs"])
    [1, 0]

    Raises:
        UserError: the generator has no such class, or none at all, or a word could be two.
    """
    if given and not num_classes:
        raise UserError(f"{option}: the generator has no classes")
    known = {name: number for number, name in enumerate(names)} if len(names) == num_classes else {}
    return [_find(option, word, num_classes, known, least) for word in given]


def _find(option: str, word: str, num_classes: int, known: dict[str, int], least: int) -> int:
    number = None if word.startswith(_NAME) else _whole(word.removeprefix(_NUMBER))
    named = None if word.startswith(_NUMBER) else known.get(word, known.get(word.removeprefix(_NAME)))
    inside = number if number is not None and least <= number < num_classes else None
    if inside is not None and named is not None and named != inside:
        both = f"'{word}' is the name of class {named} and the number of another"
        raise UserError(f"{option}: {both}; write {_NAME}{word} or {_NUMBER}{word}")
    if named is not None:
        return named
    if inside is not None:
        return inside
    expected = f"0 to {num_classes - 1}" + (" or a class's name" if known else "")
    raise UserError(f"{option}: found {word}, expected {expected}{nearest(word.removeprefix(_NAME), known)}")


def _whole(text: str) -> int | None:
    """The integer that a text stands for; None for another text."""
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else None
