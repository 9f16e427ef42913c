"""A person's changes to clusters: what was done, and which clusters and names that gives."""
