"""Losses and sample grids of runs over their updates: genflow/commands/plot.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("plot")
