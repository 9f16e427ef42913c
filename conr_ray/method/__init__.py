"""CoNR on tensors: networks, losses, neighbourhoods, clustering. Independent of engine and Ray."""
