"""Arguments and errors of the tools."""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from genflow.errors import RepeatedError, Stopped, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help ends with an example."""

    def __init__(self, description: str, example: str):
        script = Path(sys.argv[0]).stem
        if script.startswith("genflow-"):
            example = re.sub(r"python tools/\w+\.py", script, example)
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

    def add_overrides(self) -> None:
        """``--cfg-options KEY=VALUE ...``."""
        self.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override recipe entries")

    def add_average(self) -> None:
        """``--average NAME``, as :meth:`genflow.runs.folder.Run.weights` takes it."""
        self.add_argument(
            "--average",
            help="average of the weights, by its name in the recipe; none: the weights themselves "
            "(default: as exported)",
        )

    def add_times(self, steps: str = "steps from noise to data") -> None:
        """``--steps`` and ``--interval``, as :meth:`genflow.generators.base.Generator.set_sampling` takes them."""
        self.add_argument("--steps", type=int, help=f"{steps} (default: the recipe's, or one)")
        self.add_argument(
            "--interval",
            type=float,
            nargs=2,
            metavar=("START", "END"),
            help="times with guidance (default: the recipe's)",
        )

    def add_device(self) -> None:
        """``--device``, a GPU if there is one."""
        self.add_argument("--device", type=device, default="auto", help="default: a GPU if there is one")

    def add_json(self, what: str) -> None:
        """``--json FILE``, which :func:`check_json` sees to, and ``--overwrite``."""
        self.add_argument("--json", type=Path, metavar="FILE", help=what)
        self.add_argument("--overwrite", action="store_true", help="replace what --json names")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"error: {UserError(message)} (--help shows an example)\n")


def subparser(prog: str, description: str, example: str, **_: Any) -> Parser:
    """A :class:`Parser` of a subcommand: what ``add_subparsers`` takes for its ``parser_class``."""
    parser = Parser(description, example)
    parser.prog = prog
    return parser


def check_json(path: Path | None, overwrite: bool) -> None:
    """See, before the work, that figures can be written where they are wanted.

    Raises:
        UserError: something lies there that is no file, or a file that may not be replaced.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise UserError(f"--json: '{path}' is {'a folder' if path.is_dir() else 'a pipe or a device'}")
    if path.exists() and not overwrite:
        raise UserError(f"--json: '{path}' is there already; --overwrite replaces it")


class _Consent(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values or True)


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a user's mistake, or a file that cannot be used, is one line on stderr and exit code 2.

    Work that was stopped in good order has a line and an exit code of its own.
    """
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
    except Stopped as error:
        from genflow.engine.distributed import launched_rank

        if launched_rank() == 0:
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except (UserError, OSError) as error:
        print(f"error: {UserError(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        from genflow.engine.memory import out_of_memory

        if not out_of_memory(error):
            raise
        print(f"error: out of memory; take less at once: {UserError(str(error).strip()[:200])}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def default_device() -> str:
    """``cuda`` if there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def recipe(name: str) -> str:
    """A recipe's file, or the name of one of GenFlow's own, as an argument type."""
    from genflow.config.recipe_files import recipe_file

    try:
        return recipe_file(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def device(name: str) -> str:
    """A device that this machine has, as an argument type; ``auto`` is :func:`default_device`."""
    if name == "auto":
        return default_device()
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise argparse.ArgumentTypeError(f"this machine has no device '{name}'") from None
    return name
