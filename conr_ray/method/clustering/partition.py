"""Rows and their nearest centres, kept up to date while centres move; compiled, for CPUs.

Shapes: b rows, k of them whose nearest centre may have changed, d width, c clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from conr_ray.method.compiled import compiled, over_threads

Array = Any

# Rows whose cosines with all centres are computed at once: they stay in the cache.
_BLOCK = 4096
# More than the error of a cosine and of the sums of movements in float32.
_ROUNDING = 1e-5


class Partition:
    """The clusters of unit rows, with the sum and number of the rows of each.

    Each row has a lower bound of the cosine with its own centre and an upper bound of that with any
    other one. A centre that moves by some distance changes a cosine by at most as much, so only
    rows whose bounds meet are compared with all centres (Hamerly 2010), and only rows that change
    their cluster are added up, in float64. The last iterations of k-means cost little.
    """

    def __init__(self, rows_bd: Tensor, num_clusters: int) -> None:
        num_rows, width = rows_bd.shape
        self._rows_bd = rows_bd
        self._centers_cd: Tensor | None = None
        self._labels_b = torch.full((num_rows,), -1)
        self._own_b = rows_bd.new_full((num_rows,), -torch.inf)
        self._other_b = rows_bd.new_full((num_rows,), torch.inf)
        self._sums = rows_bd.new_zeros(num_clusters, width + 1, dtype=torch.float64)

    def sums(self, centers_cd: Tensor) -> Tensor:
        """Assign rows to the nearest centres.

        Returns for each cluster the sum of its rows and, in the last column, their number,
        (c, d + 1). The tensor is changed by the next call.
        """
        labels, own, other = (
            tensor.numpy() for tensor in (self._labels_b, self._own_b, self._other_b)
        )
        if self._centers_cd is None:
            unsure_k = torch.arange(len(labels))
        else:
            moved = (centers_cd - self._centers_cd).norm(dim=1).numpy()
            unsure_k = torch.from_numpy(_unsure(labels, own, other, moved))
        self._centers_cd = centers_cd
        for rows_k in torch.split(unsure_k, _BLOCK):
            some_kd = self._rows_bd[rows_k]
            cosines = (some_kd @ centers_cd.T).numpy()
            found = np.empty(len(rows_k), np.int64)
            over_threads(_two_best, len(rows_k), cosines, rows_k.numpy(), found, own, other)
            _move(some_kd.numpy(), rows_k.numpy(), found, labels, self._sums.numpy())
        return self._sums


@compiled
def _unsure(labels: Array, own: Array, other: Array, moved: Array) -> Array:
    """Widen the bounds by how far centres have moved; the rows whose bounds meet."""
    farthest, largest, second = 0, moved[0], moved[0] * 0
    for center in range(1, len(moved)):
        if moved[center] > largest:
            farthest, largest, second = center, moved[center], largest
        elif moved[center] > second:
            second = moved[center]
    rows = np.empty(len(labels), np.int64)
    count = 0
    for row in range(len(labels)):
        own[row] -= moved[labels[row]]
        other[row] += second if labels[row] == farthest else largest
        if own[row] <= other[row] + _ROUNDING:
            rows[count] = row
            count += 1
    return rows[:count]


@compiled
def _two_best(
    first: int, last: int, cosines: Array, rows: Array, found: Array, own: Array, other: Array
) -> None:
    """The nearest centre of each row, the first of equally near ones, and both bounds."""
    for place in range(first, last):
        best, largest, second = 0, cosines[place, 0], cosines[place, 0] - 4
        for center in range(1, cosines.shape[1]):
            cosine = cosines[place, center]
            if cosine > largest:
                best, largest, second = center, cosine, largest
            elif cosine > second:
                second = cosine
        found[place] = best
        own[rows[place]], other[rows[place]] = largest, second


@compiled
def _move(some_kd: Array, rows: Array, found: Array, labels: Array, sums: Array) -> None:
    """Take the rows whose label differs out of their clusters and add them to the new ones."""
    width = some_kd.shape[1]
    for place in range(len(rows)):
        old, new = labels[rows[place]], found[place]
        if old == new:
            continue
        if old >= 0:
            for column in range(width):
                sums[old, column] -= some_kd[place, column]
            sums[old, width] -= 1
        for column in range(width):
            sums[new, column] += some_kd[place, column]
        sums[new, width] += 1
        labels[rows[place]] = new
