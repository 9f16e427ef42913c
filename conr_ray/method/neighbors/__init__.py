"""The neighbour pool and its search: lists, contexts, re-ranking, memory bank."""
