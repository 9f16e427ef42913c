"""Folders, local or in a bucket, and locks."""
