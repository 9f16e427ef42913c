"""Training on one worker: the loop, its state on disk, its evaluation. Independent of Ray."""
