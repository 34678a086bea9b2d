"""Turn released weights of the original projects into run folders: genflow/commands/convert_checkpoint.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("convert_checkpoint")
