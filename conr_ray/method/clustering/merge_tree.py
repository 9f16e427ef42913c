"""Many small clusters, merged by the contextual neighbours that they share into a tree.

Shapes: n rows, k neighbours, a small clusters, c clusters of a cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


def links_between(small_n: Ints, neighbors_nk: Ints, weights_nk: npt.ArrayLike) -> Floats:
    """Summed weights of the neighbours between small clusters, both ways halved, (a, a).

    Args:
        small_n: the small cluster of each row, 0 to a - 1.
        neighbors_nk: row numbers.
        weights_nk: of these neighbours.
    """
    size = int(small_n.max()) + 1
    pairs_nk = small_n[:, None] * size + small_n[neighbors_nk]
    weights = np.asarray(weights_nk, dtype=np.float64).ravel()
    counted = np.bincount(pairs_nk.ravel(), weights, minlength=size * size).reshape(size, size)
    linked: Floats = (counted + counted.T) / 2
    return linked


@dataclass(frozen=True)
class MergeTree:
    """The cuts of a tree, from one cluster to `most`.

    Attributes:
        clusters: for each number of clusters c, the cluster of each small one, (a,).
        within: for each c, the share of the links that are inside clusters.
        expected: for each c, that share if links ignored the clusters.
    """

    clusters: dict[int, Ints]
    within: dict[int, float]
    expected: dict[int, float]

    @classmethod
    def of(cls, links_aa: Floats, most: int) -> MergeTree:
        """Merge the pair of the densest links, until one cluster is left.

        Density is the links between two clusters over the product of all links of each: the
        resolution at which modularity begins to prefer the two as one (Bonald et al. 2018).
        """
        links_aa = links_aa.copy()
        total = links_aa.sum()
        cluster_a = np.arange(len(links_aa))
        alive_a = np.ones(len(links_aa), dtype=bool)
        volumes_a = links_aa.sum(1)
        tree = cls({}, {}, {})
        dense_aa = _densities(links_aa, volumes_a[:, None] * volumes_a)
        np.fill_diagonal(dense_aa, -np.inf)
        for count in range(len(links_aa), 0, -1):
            if count <= most:
                tree.clusters[count] = np.unique(cluster_a, return_inverse=True)[1]
                tree.within[count] = float(links_aa.diagonal()[alive_a].sum() / total)
                tree.expected[count] = float(((volumes_a[alive_a] / total) ** 2).sum())
            if count == 1:
                break
            kept, gone = sorted(divmod(int(dense_aa.argmax()), len(links_aa)))
            links_aa[kept] += links_aa[gone]
            links_aa[:, kept] += links_aa[:, gone]
            volumes_a[kept] += volumes_a[gone]
            alive_a[gone] = False
            cluster_a[cluster_a == gone] = kept
            dense_a = _densities(links_aa[kept], volumes_a[kept] * volumes_a)
            dense_a[~alive_a] = -np.inf
            dense_a[kept] = -np.inf
            dense_aa[kept], dense_aa[:, kept] = dense_a, dense_a
            dense_aa[gone], dense_aa[:, gone] = -np.inf, -np.inf
        return tree

    def resolutions(self, grid_g: Floats) -> Ints:
        """For each resolution g, the number of clusters that is best at it, (g,).

        Best is the greatest modularity, links within less g times those expected (Reichardt &
        Bornholdt 2006), among the cuts.
        """
        counts = np.array(sorted(self.within))
        within_c = np.array([self.within[c] for c in counts])
        expected_c = np.array([self.expected[c] for c in counts])
        best: Ints = counts[(within_c[:, None] - expected_c[:, None] * grid_g).argmax(0)]
        return best


def _densities(links: Floats, products: Floats) -> Floats:
    """Links over the products of volumes; nothing is linked to a cluster without links."""
    dense: Floats = links / np.maximum(products, np.finfo(np.float64).tiny)
    return dense
