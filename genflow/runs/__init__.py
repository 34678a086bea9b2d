"""Run folders: read by every tool, written by training and by conversion."""
