"""Count parameters and multiply-adds of recipes' generators and encoders: genflow/commands/analyze_flops.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("analyze_flops")
