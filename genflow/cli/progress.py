"""What the tools show while they work."""

import sys


def console():
    """A rich console on stdout; wide enough for a table when its output goes to a file.

    Text is text: brackets in the names of a recipe are no markup.
    """
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)


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
