"""Samples: where they come from, how they are stored, how views are made."""
