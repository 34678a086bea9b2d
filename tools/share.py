"""Publish a finished run, or take one: genflow/commands/share.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("share")
