"""A page to try finished runs in: genflow/commands/demo.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("demo")
