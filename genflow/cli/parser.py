"""Arguments and errors of the tools."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from genflow.errors import RepeatedError, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help ends with an example."""

    def __init__(self, description: str, example: str):
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_imports(self) -> None:
        """``--allow-imports``: False, True, or names of modules."""
        self.add_argument(
            "--allow-imports",
            nargs="*",
            action=_Consent,
            default=False,
            metavar="MODULE",
            help="import what the recipe's custom_imports names, which runs its code: all, or these modules only",
        )

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"error: {UserError(message)} (--help shows an example)\n")


class _Consent(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values or True)


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a user's mistake, or a file that cannot be used, is one line on stderr and exit code 2."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a tool may have switched it off while it loaded
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names may hold letters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RepeatedError:  # the main process says it
        sys.exit(2)
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
