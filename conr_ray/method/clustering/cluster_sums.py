"""Sums of the rows of each cluster, kept up to date while rows move between clusters.

Shapes: b rows, d width, c clusters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conr_ray.method.compiled import compiled, serves

Array = Any


class ClusterSums:
    """Sum and number of the rows of each cluster, of a partition that changes.

    Sums are float64. A change costs as much as the rows that move, so the last iterations of
    k-means cost little.
    """

    def __init__(self, rows_bd: Tensor, num_clusters: int) -> None:
        self._rows_bd = rows_bd
        self._labels_b = torch.full((len(rows_bd),), -1, device=rows_bd.device)
        width = rows_bd.shape[1] + 1
        self._sums = rows_bd.new_zeros(num_clusters, width, dtype=torch.float64)

    def of(self, labels_b: Tensor) -> Tensor:
        """For each cluster the sum of its rows and, in the last column, their number, (c, d + 1).

        The tensor is changed by the next call.
        """
        if serves(labels_b.device):
            arrays = self._rows_bd, self._labels_b, labels_b, self._sums
            _move(*(tensor.numpy() for tensor in arrays))
            return self._sums
        ones_b1 = self._rows_bd.new_ones(len(labels_b), 1)
        rows = torch.cat([self._rows_bd, ones_b1], 1).double()
        self._sums.zero_().index_add_(0, labels_b, rows)
        return self._sums


@compiled
def _move(rows_bd: Array, before_b: Array, labels_b: Array, sums: Array) -> None:
    """Take the rows whose label differs out of their clusters and add them to the new ones."""
    width = rows_bd.shape[1]
    for row in range(len(rows_bd)):
        old, new = before_b[row], labels_b[row]
        if old == new:
            continue
        if old >= 0:
            for column in range(width):
                sums[old, column] -= rows_bd[row, column]
            sums[old, width] -= 1
        for column in range(width):
            sums[new, column] += rows_bd[row, column]
        sums[new, width] += 1
        before_b[row] = new
