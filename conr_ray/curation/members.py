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
# contexts take six times the memory, 25 KB a sample.
_K1, _K2, _VOTERS = 11, 3, 15
# Share of the votes that members of a cluster get, which is enough elsewhere.
_STRONG = 0.8
_BLOCK = 65536


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
    rows_nk = torch.from_numpy(np.array(neighbors.rows_nk, np.int64))
    keys_nk = rank_keys(torch.from_numpy(np.array(neighbors.similarities_nk)), rows_nk.clamp(min=0))
    keys_nk[rows_nk < 0] = EMPTY
    sound = torch.from_numpy(sound_n)
    keys_nk[~sound[rows_nk.clamp(min=0)]] = EMPTY
    keys_nk = keys_nk.sort(dim=1, descending=True).values[:, : _K1 - 1].contiguous()
    queries_q = sound.nonzero()[:, 0]
    pool = Pool(keys_nk, torch.ones(len(keys_nk)), sound)
    width = min(_VOTERS, len(queries_q) - 1)
    ((found_qk, _),) = contextual_lists(
        [pool], queries_q, k2=min(_K2, 1 + keys_nk.shape[1]), width=width
    )
    weights_qk = similarities_of(found_qk).clamp(min=0).double().numpy()
    named_qk = clusters_n[numbers_of(found_qk).clamp(min=0).numpy()]
    weights_qk[named_qk < 0] = 0
    shape = len(clusters_n)
    own_n, other_n, names_n = np.zeros(shape), np.zeros(shape), np.full(shape, -1)
    for start in range(0, len(queries_q), _BLOCK):
        part = slice(start, start + _BLOCK)
        rows, weights, named = queries_q[part].numpy(), weights_qk[part], named_qk[part]
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
