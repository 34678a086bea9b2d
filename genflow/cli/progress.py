"""What the tools show while they work."""

import sys


def console():
    """A rich console on stdout; wide enough for a table when its output goes to a file."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=140)


def progress_bar(title: str):
    """A rich progress bar with an ETA, on stderr if that is a terminal, and only while it runs."""
    from rich import progress
    from rich.console import Console

    errors = Console(stderr=True)
    return progress.Progress(
        progress.TextColumn(title),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
