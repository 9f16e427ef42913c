"""What a search has found, drawn: views of it in Weights & Biases."""
