"""Edit pictures with a finished BiFlow run, without training: genflow/commands/edit.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("edit")
