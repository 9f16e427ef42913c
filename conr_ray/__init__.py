"""CoNR deep clustering on Ray: training, search and evaluation."""

__version__ = "0.1.0"
