"""Finished runs published on the Hugging Face Hub, and taken from there."""
