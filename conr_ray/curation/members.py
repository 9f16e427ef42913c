"""Members that look wrong in their cluster: near its others in distance, far in context.

Shapes: n samples, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from conr_ray.curation.cells import Neighbors
from conr_ray.method.neighbors.contexts import Pool, contextual_lists
from conr_ray.method.neighbors.rank_keys import EMPTY, numbers_of, rank_keys, similarities_of

# Neighbours that are a context, those whose contexts are averaged, and those that vote. Wider
# contexts take six times the memory.
_K1, _K2, _VOTERS = 11, 3, 15
# Share of the votes that members of a cluster get, which is enough elsewhere.
_STRONG = 0.8
# Rows whose votes are counted at a time, and how many times as many their contexts are sought in:
# contexts take some 15 KB a row.
_BLOCK, _SURROUNDED = 8192, 5


@dataclass(frozen=True)
class WrongMembers:
    """Samples that their context counts to another cluster.

    Attributes:
        rows_m: int64, the surest first.
        others_m: the cluster that the context votes for.
        scores_m: its share of the votes.
        precisions_m: the estimated probability that the sample is rather there: its share of the
            votes for the two clusters.
    """

    rows_m: NDArray[np.int64]
    others_m: NDArray[np.int64]
    scores_m: NDArray[np.float64]
    precisions_m: NDArray[np.float64]


def wrong_members(
    neighbors: Neighbors, clusters_n: NDArray[np.int64], sound_n: NDArray[np.bool_]
) -> WrongMembers:
    """Those whose contextual neighbours (paper section 3.2) vote for another cluster.

    A vote counts if it is nearly as strong as what the cluster's own members get on average, so
    that loose clusters need less: the threshold of confident learning (Northcutt et al. 2021) with
    votes in place of a classifier's probabilities, eased to `_STRONG` of it.

    Args:
        neighbors: with the samples' nearest others.
        clusters_n: -1 where unknown.
        sound_n: samples that take part.
    """
    own_n, other_n, named_n = _votes(neighbors, clusters_n, sound_n)
    known = (clusters_n >= 0) & sound_n
    names, places = np.unique(clusters_n[known], return_inverse=True)
    usual = np.bincount(places, own_n[known]) / np.maximum(np.bincount(places), 1)
    wanted = np.searchsorted(names, np.where(named_n >= 0, named_n, names[0] if len(names) else 0))
    strong = known & (named_n >= 0) & (other_n > own_n)
    strong[strong] = other_n[strong] >= _STRONG * usual[wanted[strong]]
    rows = np.flatnonzero(strong)
    precision = other_n[rows] / (other_n[rows] + own_n[rows])
    rows = rows[np.lexsort((rows, -other_n[rows], -precision))]
    return WrongMembers(
        rows, named_n[rows], other_n[rows], other_n[rows] / (other_n[rows] + own_n[rows])
    )


def _votes(
    neighbors: Neighbors, clusters_n: NDArray[np.int64], sound_n: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Share of the votes for a sample's own cluster and for the strongest other, and its name."""
    shape = len(clusters_n)
    own_n, other_n, names_n = np.zeros(shape), np.zeros(shape), np.full(shape, -1)
    order = neighbors.order_n[sound_n[neighbors.order_n]]
    width = min(_VOTERS, len(order) - 1)
    for start in range(0, len(order), _BLOCK):
        rows = np.sort(order[start : start + _BLOCK])
        weights, voters = _voters(neighbors, rows, sound_n, width)
        named = clusters_n[voters]
        weights[named < 0] = 0
        total = np.maximum(weights.sum(1), 1e-12)
        own = named == clusters_n[rows][:, None]
        own_n[rows] = (weights * own).sum(1) / total
        # For each voter the votes of all that name the same cluster.
        sums = np.stack([(weights * (named == named[:, [k]])).sum(1) for k in range(width)], 1)
        sums[own | (named < 0)] = -1
        best = sums.argmax(1)
        strongest = sums[np.arange(len(rows)), best]
        other_n[rows] = np.maximum(strongest, 0) / total
        names_n[rows] = np.where(strongest > 0, named[np.arange(len(rows)), best], -1)
    return own_n, other_n, names_n


def _voters(
    neighbors: Neighbors, rows: NDArray[np.int64], sound_n: NDArray[np.bool_], width: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The contextual neighbours of some rows, with their weights, (b, width) each.

    Contexts are those in `_surroundings`, and exact where that holds all of a context.
    """
    pool = _surroundings(neighbors, rows, sound_n)
    rows_pk, keys_pk = _nearest_sound(neighbors, pool, sound_n)
    inside_pk = np.searchsorted(pool, rows_pk).clip(max=len(pool) - 1)
    there_pk = torch.from_numpy((pool[inside_pk] == rows_pk) & (rows_pk >= 0))
    # Numbers within the pool rise with those of all rows, and so do the keys of equal cosines.
    keys_pk = rank_keys(similarities_of(keys_pk), torch.from_numpy(inside_pk))
    keys_pk[~there_pk] = EMPTY
    keys_pk = keys_pk.sort(dim=1, descending=True).values.contiguous()
    live_p = torch.ones(len(pool), dtype=torch.bool)
    queries = torch.from_numpy(np.searchsorted(pool, rows))
    ((found_bk, _),) = contextual_lists(
        [Pool(keys_pk, torch.ones(len(pool)), live_p)],
        queries,
        k2=min(_K2, 1 + keys_pk.shape[1]),
        width=width,
    )
    weights_bk = similarities_of(found_bk).clamp(min=0).double().numpy()
    return weights_bk, pool[numbers_of(found_bk).clamp(min=0).numpy()]


def _surroundings(
    neighbors: Neighbors, rows: NDArray[np.int64], sound_n: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Rows, their nearest, the nearest of these and so on, sorted: at most `_SURROUNDED` times.

    Where those are fewer than all, the last ones are left out.
    """
    most = min(_SURROUNDED * _BLOCK, int(sound_n.sum()))
    taken_n = np.zeros(len(sound_n), bool)
    taken_n[rows] = True
    count, outer = len(rows), rows
    while count < most and len(outer):
        near, _ = _nearest_sound(neighbors, outer, sound_n)
        # Of all rows the nearest first, then the second nearest.
        near = near.T.ravel()
        near = near[(near >= 0) & ~taken_n[near]]
        _, first = np.unique(near, return_index=True)
        outer = near[np.sort(first)][: most - count]
        taken_n[outer] = True
        count += len(outer)
    return np.flatnonzero(taken_n)


def _nearest_sound(
    neighbors: Neighbors, rows: NDArray[np.int64], sound_n: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The `_K1` - 1 nearest others that are sound, (b, k), -1 if there are fewer, and rank keys."""
    near_bk = torch.from_numpy(np.array(neighbors.rows_nk[rows], np.int64))
    similarities_bk = torch.from_numpy(np.array(neighbors.similarities_nk[rows]))
    keys_bk = rank_keys(similarities_bk, near_bk.clamp(min=0))
    keys_bk[(near_bk < 0) | ~torch.from_numpy(sound_n)[near_bk.clamp(min=0)]] = EMPTY
    keys_bk = keys_bk.sort(dim=1, descending=True).values[:, : _K1 - 1]
    return numbers_of(keys_bk).numpy(), keys_bk
