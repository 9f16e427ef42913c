"""What a run or a search has found, drawn: one HTML file, figures for papers, views in W&B."""
