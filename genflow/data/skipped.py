"""The list of what a data set could not read and left out: a text file, written by any process, one line each."""

from pathlib import Path

from filelock import FileLock

from genflow.errors import UserError


def list_skipped(file: Path, line: str) -> None:
    """Append a line that is not in the list yet.

    Raises:
        UserError: the list cannot be written.
    """
    line = line.encode(errors="backslashreplace").decode()
    try:
        with FileLock(file.with_name(f".{file.name}.lock")):
            if line not in read_skipped(file):
                with file.open("a", encoding="utf-8") as opened:
                    opened.write(f"{line}\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from None


def read_skipped(file: Path) -> list[str]:
    """The lines of the list; none where there is no file."""
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
