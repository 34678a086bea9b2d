"""Estimate how an update of a recipe divides among many GPUs: genflow/commands/scaling.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("scaling")
