"""Write a finished run as a file: genflow/commands/export.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("export")
