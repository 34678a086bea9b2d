"""Reproduce a paper's comparisons at the size of the embedded data: genflow/commands/reproduce.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("reproduce")
