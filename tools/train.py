"""Train a recipe: genflow/commands/train.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("train")
