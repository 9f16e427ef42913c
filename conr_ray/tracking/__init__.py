"""Observers of a run: Weights & Biases, the terminal and log files."""
