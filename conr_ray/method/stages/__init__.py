"""The two stages of CoNR and their losses."""
