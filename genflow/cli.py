"""What the tools share: one-line errors, progress bars, argument types."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from genflow.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help ends with an example."""

    def __init__(self, description: str, example: str):
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (--help shows an example)\n")


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a user's mistake is one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def default_device() -> str:
    """``cuda`` if there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def progress_bar(title: str):
    """A rich progress bar with an ETA, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def existing(path: str) -> Path:
    """A path that must exist, as an argument type."""
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"no such file or folder: '{path}'")
    return Path(path)
