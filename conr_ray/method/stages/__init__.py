"""The two stages of CoNR: what a step of each makes small."""
