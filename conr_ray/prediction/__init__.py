"""Apply a trained run to any number of new samples."""
