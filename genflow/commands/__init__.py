"""The command lines: parse arguments, call genflow, print. Each is tools/NAME.py and genflow-NAME."""
