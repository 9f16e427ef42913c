"""k-means on embeddings, and clustering metrics."""
