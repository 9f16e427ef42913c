"""Each sample's neighbours in the whole data set, each kind found once, where it is asked for.

Shapes: n samples, b of them this worker's share, d width, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from conr_ray.method.clustering.metrics import neighbor_matches
from conr_ray.method.collectives import all_gather_rows, all_reduce_sum, share
from conr_ray.method.neighbors.pool import Neighborhood
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors

KINDS = ("contextual", "euclidean")


class DataNeighbors:
    """Neighbours among embeddings that are split over the workers."""

    def __init__(
        self, near: Neighborhood, embed: Callable[[], Tensor], num_rows: int, least: int = 1
    ) -> None:
        """Search nothing yet.

        Args:
            near: k1, k2 and k, each at most n here, and probes.
            embed: gives the embeddings (b, d), this worker's share of n; called for each search, so
                that they need not be kept.
            num_rows: n.
            least: neighbours that are found, if k is less.
        """
        self._near, self._wanted = near, least
        self._embed, self._num_rows = embed, num_rows
        self._k1 = min(near.k1, num_rows)
        self._k2, self._k = min(near.k2, self._k1), min(near.k, num_rows)
        self._least = min(max(least, near.k), num_rows)
        self._found_bk: dict[str, Tensor] = {}

    def among(self, embed: Callable[[], Tensor], num_rows: int) -> DataNeighbors:
        """Neighbours found likewise among others."""
        return DataNeighbors(self._near, embed, num_rows, self._wanted)

    def rows(self, kind: str, k: int | None = None) -> Tensor:
        """Row numbers (b, k), the sample itself first; k is that of `near` unless given.

        Called by all workers.
        """
        k = self._k if k is None else min(k, self._num_rows)
        found_bk = self._found_bk.get(kind)
        if found_bk is None or found_bk.shape[1] < k:
            found_bk = self._found_bk[kind] = self._find(kind, max(k, self._least))
        return found_bk[:, :k]

    def all_rows(self, kind: str, k: int | None = None) -> Tensor:
        """`rows` of all samples, (n, k)."""
        return all_gather_rows(self.rows(kind, k), self._num_rows)

    def of(self, kind: str, queries_q: Tensor, k: int) -> Tensor:
        """`rows` of some samples, the same on all workers, (q, k); quicker than those of all."""
        if kind in self._found_bk:
            return self.all_rows(kind, k)[queries_q]
        return self._find(kind, min(k, self._num_rows), queries_q)

    def _find(self, kind: str, k: int, queries_q: Tensor | None = None) -> Tensor:
        search: Callable[..., tuple[Tensor, Tensor]] = euclidean_neighbors
        if kind == "contextual":
            search = partial(contextual_neighbors, k1=self._k1, k2=self._k2)
        return search(
            self._embed(),
            k=k,
            num_rows=self._num_rows,
            queries_q=queries_q,
            probes=self._near.probes,
        )[1]

    def purities(self, labels_n: Tensor) -> dict[str, float]:
        """Share of each kind's neighbours with the sample's label, -1 where unknown.

        Equal on all workers; empty if no label is known.
        """
        labels_b, figures = labels_n[share(len(labels_n))], {}
        for kind in KINDS:
            found_bk = labels_n[self.rows(kind)]
            same, known = all_reduce_sum(neighbor_matches(found_bk, labels_b)).tolist()
            if known:
                figures[f"data_purity_{kind}"] = same / known
        return figures
