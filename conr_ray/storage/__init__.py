"""Files here or in a bucket, and locks: what runs, searches, trunks and caches are made of."""
