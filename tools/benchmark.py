"""Time parts of GenFlow against each other: genflow/commands/benchmark.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("benchmark")
