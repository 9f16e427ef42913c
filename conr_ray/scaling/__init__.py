"""Ray: workers, placement, storage, failures."""
