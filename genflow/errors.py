"""Errors that are the user's to mend, and the one-line messages they carry."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: one line that says where, what was found and what was expected.

    The tools print the message alone and exit with code 2; nothing has been written by then.
    """


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return ``"; nearest match: 'x'"`` for the candidate closest to ``word``, or an empty string."""
    matches = difflib.get_close_matches(str(word), [str(name) for name in candidates], n=1, cutoff=0.5)
    return f"; nearest match: '{matches[0]}'" if matches else ""


def missing_extra(package: str, extra: str) -> UserError:
    """The one line for an optional package that is not installed."""
    return UserError(f"this feature needs the package '{package}': pip install \"genflow[{extra}]\"")
