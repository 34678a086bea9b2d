"""Arguments and errors of the tools."""

import argparse
import os
import sys
from collections.abc import Callable
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
        self.exit(2, f"error: {UserError(message)} (--help shows an example)\n")


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a user's mistake, or a file that cannot be used, is one line on stderr and exit code 2."""
    try:
        main()
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:
        print(f"error: {UserError(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def default_device() -> str:
    """``cuda`` if there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device(name: str) -> str:
    """A device that this machine has, as an argument type."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise argparse.ArgumentTypeError(f"this machine has no device '{name}'") from None
    return name
