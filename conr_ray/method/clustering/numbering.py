"""Numbers of clusters that follow those of an earlier clustering of the same samples.

Shapes: n samples that both hold, a earlier clusters, c clusters.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Of the samples that either of two clusters holds, the least share that both hold if one is to take
# over the number of the other. Of a cluster in three equal parts, one still does.
LEAST_OVERLAP = 1 / 3


def counts_of(earlier_n: Ints, places_n: Ints, num_earlier: int, num_clusters: int) -> Ints:
    """How many samples each earlier cluster shares with each cluster, int64 (a, c)."""
    pairs_n = earlier_n * num_clusters + places_n
    counts = np.bincount(pairs_n, minlength=num_earlier * num_clusters)
    return counts.reshape(num_earlier, num_clusters).astype(np.int64)


def matched(counts_ac: Ints, least: float = 0.0) -> dict[int, int]:
    """For each cluster that an earlier one is matched with, the place of that one.

    The match is one to one, and of all such it keeps the most samples in matched pairs (Kuhn 1955).
    Clusters without a common sample are no pair, nor are those that share less than `least` of the
    samples that either of them holds.
    """
    # Imported late: SciPy takes long to import.
    from scipy.optimize import linear_sum_assignment

    either_ac = counts_ac.sum(1, keepdims=True) + counts_ac.sum(0, keepdims=True) - counts_ac
    # Compared as a product, so that equal parts do not depend on rounding.
    allowed_ac = (counts_ac > 0) & (counts_ac >= least * either_ac * (1 - 1e-9))
    rows, columns = linear_sum_assignment(np.where(allowed_ac, counts_ac, 0), maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return {column: row for row, column in pairs if allowed_ac[row, column]}


def followed(counts_ac: Ints) -> Ints:
    """The order in which clusters follow the earlier ones, int64 (c,): places in `counts_ac`.

    Matched ones are in the order of the earlier ones, the others behind them. If there are as many
    as before, each matched one comes to the earlier one's place.
    """
    found = matched(counts_ac)
    num_earlier, num_clusters = counts_ac.shape
    if num_earlier == num_clusters:
        left = iter(sorted(set(range(num_earlier)) - set(found.values())))
        found |= {place: next(left) for place in range(num_clusters) if place not in found}
    behind = num_earlier + np.arange(num_clusters)
    keys = [found.get(place, int(behind[place])) for place in range(num_clusters)]
    return np.argsort(np.array(keys), kind="stable").astype(np.int64)


def numbers_of(counts_ac: Ints, earlier: Iterable[int], first_free: int) -> Ints:
    """The number of each cluster, int64 (c,): that of the earlier one that it is matched with.

    One that shares too little with each (`LEAST_OVERLAP`) gets a number from `first_free` on.

    Args:
        counts_ac: samples that both hold.
        earlier: numbers of the earlier clusters.
        first_free: above all numbers that were ever used.
    """
    numbers = list(earlier)
    found = matched(counts_ac, LEAST_OVERLAP)
    told = []
    for place in range(counts_ac.shape[1]):
        if place in found:
            told.append(numbers[found[place]])
        else:
            told.append(first_free)
            first_free += 1
    return np.array(told, np.int64)
