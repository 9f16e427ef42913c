"""CoNR on tensors: networks, losses, neighbourhoods, clustering. Knows nothing above torch."""
