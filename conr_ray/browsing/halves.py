"""Two halves of a cluster, by its embeddings.

Shapes: n samples, m of the cluster, v vectors, d embedding width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from conr_ray.browsing.collection import Embeddings, Rows

_ITERATIONS = 50


def mean_of(embeddings_nd: Embeddings, rows: Rows) -> Embeddings:
    """The mean of some rows, float32 (d,)."""
    total = np.zeros(embeddings_nd.shape[1], np.float64)
    for part in np.array_split(np.sort(rows), -(-len(rows) // 2**14)):
        total += embeddings_nd[part].sum(0, dtype=np.float64)
    found: Embeddings = (total / len(rows)).astype(np.float32)
    return found


def in_two(
    embeddings_nd: Embeddings, rows: Rows
) -> tuple[npt.NDArray[np.bool_], Embeddings | None]:
    """Spherical 2-means of some rows: which of them go, and both means; None if all are equal.

    It begins with the sample that is farthest from the mean, and with that farthest from it.
    """
    mean_d = mean_of(embeddings_nd, rows)
    parts = np.array_split(rows, -(-len(rows) // 2**14))

    def cosines(vectors_vd: Embeddings) -> Embeddings:
        unit_vd = vectors_vd / np.linalg.norm(vectors_vd, axis=1, keepdims=True).clip(1e-12)
        return np.concatenate([embeddings_nd[part] @ unit_vd.T for part in parts])

    first = rows[int(cosines(mean_d[None])[:, 0].argmin())]
    away_m = cosines(np.array(embeddings_nd[[first]]))[:, 0]
    if away_m.min() > 1 - 1e-6:
        return np.zeros(len(rows), bool), None
    centers_2d = np.array(embeddings_nd[[rows[int(away_m.argmin())], first]])
    goes_m = np.zeros(len(rows), bool)
    for _ in range(_ITERATIONS):
        before_m, goes_m = goes_m, cosines(centers_2d).argmax(1) == 1
        if goes_m.all() or not goes_m.any():
            return np.zeros(len(rows), bool), None
        # The smaller part goes, so that the number stays with most of the images.
        if goes_m.mean() > 0.5:
            goes_m = ~goes_m
        centers_2d = np.stack([mean_of(embeddings_nd, rows[m]) for m in (~goes_m, goes_m)])
        if (goes_m == before_m).all():
            break
    return goes_m, centers_2d
