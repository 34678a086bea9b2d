"""Finished runs beside each other in one picture: genflow/commands/compare.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("compare")
