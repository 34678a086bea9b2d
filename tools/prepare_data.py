"""Prepare data for training: pictures cropped once, latents of a codec, checks: genflow/commands/prepare_data.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("prepare_data")
