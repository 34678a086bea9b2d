"""Errors that are the user's to mend, and the one-line messages they carry."""

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave: one line that says where, what was found and what was expected.

    The tools print the message alone and exit with code 2; nothing has been written by then.
    """

    def __init__(self, message: str):
        # Names and values in it may hold line breaks and control characters.
        super().__init__("".join(letter if letter.isprintable() else " " for letter in message))


class RepeatedError(UserError):
    """A mistake that the main process reports; the others end with the same exit code and say nothing."""


class Stopped(RuntimeError):
    """Work ended in good order, by a signal or because it could not go on; the message says what is kept.

    Args:
        message: what is kept.
        exit_code: of the tool.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.args[0]


def nearest(word: object, candidates: Iterable[object]) -> str:
    """Return ``"; nearest match: 'x'"`` for the candidate closest to ``word``, or an empty string."""
    names = {str(name).casefold(): str(name) for name in candidates}
    matches = difflib.get_close_matches(str(word).casefold(), names, n=1, cutoff=0.5)
    return f"; nearest match: '{names[matches[0]]}'" if matches else ""


def shown(value: object) -> str:
    """``value`` as messages show it, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def kind_of(value: object) -> str:
    """What sort of value a recipe has there, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), f"{type(value).__name__} {shown(value)}")


def reason(error: BaseException) -> str:
    """The first line of ``error``; one that is no ValueError is named, with its place in the source."""
    lines = str(error).strip().splitlines()
    first = lines[0][:300] if lines else ""
    if isinstance(error, (ValueError, ImportError)) and first:
        return first
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{place}: {first}".rstrip(": ")


def opencv_missing(what: str, error: ImportError) -> UserError:
    """The one line for something that imports OpenCV where that cannot be imported."""
    hint = "OpenCV needs on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
    return UserError(f"{what} and imports OpenCV, cannot be imported: {error}; {hint}")


def missing_extra(package: str, extra: str) -> UserError:
    """The one line for an optional package that is not installed."""
    return UserError(f"this feature needs the package '{package}': pip install \"genflow[{extra}]\"")
