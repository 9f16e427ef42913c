"""k-means on embeddings, and how good a clustering is."""
