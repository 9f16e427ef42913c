"""Weights & Biases and what else shows a run; handed to the loop as observers."""
