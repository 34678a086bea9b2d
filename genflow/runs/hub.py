"""Runs on the Hugging Face Hub: their names, and their files in the hub's cache.

What lies there is a stranger's: files with the names of a run's are fetched and no others, and they are read as those
of any run are, which executes nothing (docs/reliability.md, "What is safe to open").
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from genflow.errors import UserError, missing_extra, reason, shown

#: What comes before the name of a run on the hub, where a folder could be meant as well.
PREFIX = "hub:"
#: What it takes to use a run.
NEEDED_FILES = (
    "recipe.yaml",
    "metrics.json",
    "generator.safetensors",
    "generator-*.safetensors",
    "prerequisites/*.safetensors",
)
#: All that a published run holds.
SHARED_FILES = (*NEEDED_FILES, "README.md", "scalars.jsonl", "samples/*.png")
#: In the hub's patterns an asterisk stands for slashes, too.
_DEEPER = ("*/*/*", "generator-*/*")

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A run on the hub.

    Args:
        repository: ``user/name``.
        revision: a branch, tag or commit; None for the newest.
    """

    repository: str
    revision: str | None = None

    @staticmethod
    def matches(text: str) -> bool:
        """Whether a text could be the name of a run on the hub, without ``hub:``."""
        return _NAME.fullmatch(text) is not None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Read ``user/name`` or ``user/name@revision``, with ``hub:`` before it or not.

        >>> HubName.parse("hub:user/biflow-digits@v1")
        HubName(repository='user/biflow-digits', revision='v1')

        Raises:
            UserError: it is something else.
        """
        match = _NAME.fullmatch(text.removeprefix(PREFIX))
        if match is None:
            raise UserError(f"{shown(text)}: expected a run on the hub: user/name or user/name@revision")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return PREFIX + self.repository + (f"@{self.revision}" if self.revision else "")


def hub() -> Any:
    """The client library, :mod:`huggingface_hub`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise missing_extra("huggingface_hub", "hub") from error
    return huggingface_hub


def is_shared(file: str, patterns: tuple[str, ...] = SHARED_FILES) -> bool:
    """Whether a relative path is a name of these, and in their folders."""
    return any(fnmatchcase(file, pattern) and file.count("/") == pattern.count("/") for pattern in patterns)


def fetch(name: HubName, patterns: tuple[str, ...] = NEEDED_FILES) -> Path:
    """The folder of the hub's cache with a run's files, fetched unless they are there.

    Without a connection it is what the cache has of that revision. The folder is the cache's own, not to be written to.

    Args:
        name: of the run.
        patterns: names of the files; others are not fetched.

    Raises:
        UserError: the client library is missing, or as :func:`in_one_line`.
    """
    client = hub()
    with in_one_line(name):
        folder = client.snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(_DEEPER),
            library_name="genflow",
        )
    return Path(folder)


def files_of(folder: Path, patterns: tuple[str, ...] = SHARED_FILES) -> list[str]:
    """The relative paths of files in a folder whose names are of these."""
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    names = sorted(str(PurePosixPath(*path.parts)) for path in found)
    return [name for name in names if is_shared(name, patterns)]


@contextmanager
def in_one_line(name: HubName) -> Iterator[None]:
    """Say in one line what the hub, or the way to it, refuses.

    Raises:
        UserError: there is no such run, it is not the user's to read or write, or the hub cannot be reached.
    """
    from huggingface_hub import errors

    log_in = "log in with 'hf auth login', or set HF_TOKEN"
    try:
        yield
    except UserError:
        raise
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: the hub has no revision '{name.revision}' of it") from None
    except errors.GatedRepoError:
        raise UserError(f"{name}: who may read it is decided on its page; ask there, and {log_in}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{name}: the hub has no such model, or a private one of others; {log_in}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError(f"{name}: the hub does not let you: {log_in}") from None
        raise UserError(f"{name}: the hub refuses: {_line(error)}") from None
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        raise UserError(f"{name}: is not in the hub's cache, and the hub cannot be reached: {_line(cause)}") from None
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: {_line(error)}{f': {_line(error.__cause__)}' if error.__cause__ else ''}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or reason(error)
