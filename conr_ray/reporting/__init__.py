"""Reports: one HTML file that shows a run or a search, and figures of it for papers."""
