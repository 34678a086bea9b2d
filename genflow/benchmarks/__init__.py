"""Computations timed against each other in one process."""
