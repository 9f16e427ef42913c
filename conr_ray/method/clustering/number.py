"""The number of clusters, without labels: the cut of a merge tree that lasts longest.

Shapes: n rows, b of them this worker's, d width, k neighbours, a small clusters, g resolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.clustering.merge_tree import Floats, Ints, MergeTree, links_between
from conr_ray.method.collectives import all_gather_rows, broadcast_first, evenly_spaced, share
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.reranking import contextual_neighbors

# Most rows that are looked at.
MOST_ROWS = 5000
# The least upper bound of the tree: a smaller range changes what is chosen from, not the tree.
LEAST_BOUND = 30
# Small clusters for each of the upper bound, and rows of each at least.
_SMALL_PER_CLUSTER, _ROWS_PER_SMALL = 4, 8
# Neighbours in shares of the rows that a cluster has at the upper bound, and the least.
_WIDTHS, _LEAST_WIDTH = (1.2, 1.9), 5
# Divisions into small clusters, and principal directions that they are made in.
_DIVISIONS, _DIRECTIONS = 5, 50
_K1, _K2 = 50, 5
# Resolutions, evenly spaced in their logarithm.
_GRID_G = np.exp(np.linspace(np.log(0.1), np.log(10), 600))
# Rows shorter than this after centring keep their direction.
_SHORT = 1e-6


@dataclass(frozen=True)
class NumberChoice:
    """A number of clusters and what it was chosen by.

    Attributes:
        num_clusters: the number.
        shares: for each number from 2 on, the share of the resolutions at which it is best, times
            1 - 1 / number, so that all sum to 1.
        outside: the number that stands out most, if none in the range does; else None.
    """

    num_clusters: int
    shares: dict[int, float]
    outside: int | None = None

    @property
    def why(self) -> str:
        """One line for people."""
        number = self.num_clusters
        if self.outside is not None:
            return (
                f"{number} clusters: none in the range stands out, and this is the nearest to "
                f"{self.outside}, which does"
            )
        if not self.shares.get(number):
            return f"{number} clusters: no number stands out, and this is the smallest"
        ranked = sorted(self.shares, key=lambda one: -self.shares[one])
        others = [f"{one} ({self.shares[one]:.2f})" for one in ranked if one != number]
        others = [text for text in others[:2] if "(0.00)" not in text]
        runner_up = f"; next {', '.join(others)}" if others else ""
        return (
            f"{number} clusters last over the widest range of scales ({self.shares[number]:.2f}"
            f"{runner_up})"
        )


def choose_number(
    local_bd: Tensor, num_rows: int, least: int, most: int, *, seed: int
) -> NumberChoice:
    """Choose between `least` and `most` clusters; called by all workers, equal on all.

    At most `MOST_ROWS` rows are looked at, evenly spaced, centred and at unit length. They are
    divided into four times as many small clusters as may be wanted (k-means in their principal
    directions), which are merged by their rows' contextual neighbours (`contextual_neighbors`,
    paper section 3.2). Each cut of that tree is best at some range of resolutions of modularity
    (Reichardt & Bornholdt 2006); the one with the widest range in logarithms is chosen, as Bonald
    et al. 2018 read a dendrogram. Ten trees vote together, of five divisions and of two numbers of
    neighbours, 1.2 and 1.9 times the rows that a cluster has at the upper bound. Ranges of c
    clusters are multiplied by 1 - 1 / c: few clusters have wide ranges even without structure.

    Args:
        local_bd: this worker's share of the n embeddings (`collectives.share`).
        num_rows: n.
        least: smallest number, 2 or more.
        most: greatest number.
        seed: of k-means.

    Raises:
        ValueError: the range is empty or exceeds the rows, or all rows are equal.
    """
    if not 2 <= least <= most <= num_rows:
        raise ValueError(f"{least}..{most} clusters of {num_rows} rows")
    _, rows_nd = evenly_spaced(local_bd, num_rows, MOST_ROWS)
    count, bound = len(rows_nd), max(LEAST_BOUND, most)
    if bool((rows_nd == rows_nd[0]).all()):
        raise ValueError("all rows are equal")
    rows_nd = _centred(rows_nd)
    width = _neighbors_for(count, bound, _WIDTHS[-1])
    fewest = min(2 * bound, count // 2)
    num_small = min(_SMALL_PER_CLUSTER * bound, max(2, fewest, count // _ROWS_PER_SMALL))
    own = share(count)
    k1 = max(2, min(_K1, count // 10))
    found = contextual_neighbors(
        rows_nd[own], k1=k1, k2=min(_K2, k1), k=min(width + 1, count), num_rows=count
    )
    weights_nk, neighbors_nk = (all_gather_rows(one, count) for one in found)
    directions_nd = _principal(rows_nd, seed)
    votes_c = np.zeros(bound + 1)
    near_nk, weight_nk = neighbors_nk.cpu().numpy(), weights_nk.cpu().numpy()
    for division in range(_DIVISIONS):
        key = fold(seed, "small", division)
        small = spherical_kmeans(directions_nd[own], count, num_small, seed=key, restarts=1)
        small_n = all_gather_rows(small.labels_b, count).cpu().numpy()
        votes_c += _votes(small_n, near_nk, weight_nk, bound)
    # On unequal hardware the last bit could differ, and with it what the workers do.
    votes_c = broadcast_first(torch.from_numpy(votes_c).to(local_bd.device)).cpu().numpy()
    return _chosen(votes_c / max(votes_c.sum(), 1.0), least, most)


def _centred(rows_nd: Tensor) -> Tensor:
    """Rows less their mean, at unit length."""
    centred_nd = rows_nd - rows_nd.mean(0)
    short_n1 = centred_nd.norm(dim=1, keepdim=True) < _SHORT
    return normalize(torch.where(short_n1, rows_nd, centred_nd))


def _neighbors_for(num_rows: int, bound: int, share_of_cluster: float) -> int:
    """Neighbours of a row."""
    wanted = max(_LEAST_WIDTH, round(num_rows / bound * share_of_cluster))
    return min(wanted, num_rows - 1)


def _principal(rows_nd: Tensor, seed: int) -> Tensor:
    """The rows in their main directions, by two iterations from random ones, at unit length."""
    width = min(_DIRECTIONS, *rows_nd.shape)
    generator = torch.Generator().manual_seed(fold(seed, "directions"))
    begun_dw = torch.randn(rows_nd.shape[1], width, generator=generator).to(rows_nd)
    for _ in range(2):
        begun_dw = torch.linalg.qr(rows_nd.T @ (rows_nd @ begun_dw)).Q
    return normalize(rows_nd @ begun_dw)


def _votes(small_n: Ints, neighbors_nk: Ints, weights_nk: Floats, bound: int) -> Floats:
    """For each number from 0 on the weighted range of the resolutions at which it is best."""
    small_n = np.unique(small_n, return_inverse=True)[1]
    votes_c = np.zeros(bound + 1)
    finest = min(bound + 1, int(small_n.max()) + 1)
    for part in _WIDTHS:
        width = _neighbors_for(len(small_n), bound, part)
        # The row itself comes first.
        chosen = slice(1, width + 1)
        links_aa = links_between(small_n, neighbors_nk[:, chosen], weights_nk[:, chosen])
        best_g = MergeTree.of(links_aa, finest).resolutions(_GRID_G)
        votes_c += np.bincount(best_g, minlength=bound + 2)[: bound + 1]
    # One cluster, and the finest cut, are best at all resolutions beyond.
    votes_c[:2] = votes_c[finest:] = 0
    votes_c[2:] *= 1 - 1 / np.arange(2, bound + 1)
    return votes_c


def _chosen(shares_c: Floats, least: int, most: int) -> NumberChoice:
    shares = {number: float(shares_c[number]) for number in range(2, len(shares_c))}
    if not any(shares.values()):
        return NumberChoice(least, shares)
    best = max(shares, key=lambda one: shares[one])
    number = max(range(least, most + 1), key=lambda one: (shares.get(one, 0.0), -abs(one - best)))
    return NumberChoice(number, shares, None if shares.get(number, 0.0) > 0 else best)
