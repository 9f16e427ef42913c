"""Rows and their nearest centres, kept up to date while centres move; for CPUs.

Shapes: b rows, k of them whose nearest centre may have changed, m that change their cluster, d
width, c clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        if self._centers_cd is None:
            unsure_k = torch.arange(len(self._labels_b))
        else:
            unsure_k = self._unsure((centers_cd - self._centers_cd).norm(dim=1))
        self._centers_cd = centers_cd
        for rows_k in torch.split(unsure_k, _BLOCK):
            some_kd = self._rows_bd[rows_k]
            cosines_kc = some_kd @ centers_cd.T
            own_k, found_k = cosines_kc.max(1)
            self._own_b[rows_k] = own_k
            cosines_kc.scatter_(1, found_k[:, None], -torch.inf)
            self._other_b[rows_k] = cosines_kc.amax(1)
            self._move(rows_k, some_kd, found_k)
        return self._sums

    def _unsure(self, moved_c: Tensor) -> Tensor:
        """Widen the bounds by how far centres have moved; the rows whose bounds meet."""
        largest, farthest = moved_c.max(0)
        second = moved_c.scatter(0, farthest, 0.0).amax()
        self._own_b -= moved_c[self._labels_b]
        self._other_b += torch.where(self._labels_b == farthest, second, largest)
        return (self._own_b <= self._other_b + _ROUNDING).nonzero().flatten()

    def _move(self, rows_k: Tensor, some_kd: Tensor, found_k: Tensor) -> None:
        """Take the rows whose label differs out of their clusters and add them to the new ones."""
        labels_k = self._labels_b[rows_k]
        differs_k = labels_k != found_k
        old_m, new_m, moved_md = labels_k[differs_k], found_k[differs_k], some_kd[differs_k]
        moved_md = torch.cat([moved_md, moved_md.new_ones(len(moved_md), 1)], 1).double()
        had_m = old_m >= 0
        self._sums.index_add_(0, old_m[had_m], moved_md[had_m], alpha=-1)
        self._sums.index_add_(0, new_m, moved_md)
        self._labels_b[rows_k] = found_k
