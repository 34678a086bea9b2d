"""The papers' tables and figures, at the size of the embedded data."""
