"""Ray Train: workers, placement, storage, failures."""
