"""Neighbours of one sample, or of one picture, among those that are browsed.

Shapes: n samples, m of them near, d width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Rows of a memory-mapped array that are compared at a time.
_BLOCK = 2**15
# Samples among which contexts are compared: of more, those that are near are the same.
_NEAR = 1000

Rows = npt.NDArray[np.int64]


def nearest(
    embeddings_nd: npt.NDArray[np.float32], query_d: npt.NDArray[np.float32], count: int
) -> Rows:
    """The rows with the largest cosines with a vector, best first, at most `count`."""
    cosines_n = np.empty(len(embeddings_nd), np.float32)
    for start in range(0, len(embeddings_nd), _BLOCK):
        cosines_n[start : start + _BLOCK] = embeddings_nd[start : start + _BLOCK] @ query_d
    count = min(count, len(cosines_n))
    best_k = np.argpartition(-cosines_n, count - 1)[:count]
    # Of equal cosines the lower row first.
    found: Rows = best_k[np.lexsort((best_k, -cosines_n[best_k]))].astype(np.int64)
    return found


def euclidean(embeddings_nd: npt.NDArray[np.float32], row: int, count: int) -> Rows:
    """The nearest other rows of a row, best first."""
    found = nearest(embeddings_nd, embeddings_nd[row], count + 1)
    others: Rows = found[found != row][:count]
    return others


def contextual(
    embeddings_nd: npt.NDArray[np.float32], row: int, count: int, *, k1: int, k2: int
) -> Rows:
    """The other rows with the most similar contexts, best first.

    Contexts are those among the `_NEAR` nearest rows of this one; near their edge they differ from
    those among all.
    """
    from conr_ray.method.neighbors.reranking import contextual_neighbors

    near_m: Rows = np.union1d(nearest(embeddings_nd, embeddings_nd[row], _NEAR), [row])
    if len(near_m) < 3:
        return euclidean(embeddings_nd, row, count)
    rows_md = np.array(embeddings_nd[near_m])
    k1 = min(k1, len(near_m))
    count = min(count + 1, len(near_m))
    import torch

    query = torch.tensor([int(np.searchsorted(near_m, row))])
    _, rows = contextual_neighbors(rows_md, k1=k1, k2=min(k2, k1), k=count, queries_q=query)
    found = near_m[rows[0].numpy()]
    others: Rows = found[found != row]
    return others
