"""One worker's life: the loop, its state on disk, its evaluation. Knows no Ray."""
