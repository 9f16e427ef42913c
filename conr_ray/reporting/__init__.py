"""Reports on runs and searches: one HTML file, figures for papers, views in W&B."""
