"""Evaluate a finished run: genflow/commands/evaluate.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("evaluate")
