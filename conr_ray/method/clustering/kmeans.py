"""Spherical k-means over embeddings that are split over the workers.

Shapes: b rows of this worker, n rows of all, s rows of the sample, d width, c clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.clustering.cluster_sums import ClusterSums
from conr_ray.method.collectives import all_reduce_sum, broadcast_first, share

# Rows of the sample on which starts are compared; smaller data sets are used whole.
_SAMPLE_ROWS = 8192


@dataclass(frozen=True)
class Clustering:
    """Centres (c, d) of unit length, and the cluster of each local row, (b,) int64."""

    centers_cd: Tensor
    labels_b: Tensor


def spherical_kmeans(
    local_bd: Tensor,
    num_rows: int,
    num_clusters: int,
    *,
    seed: int,
    restarts: int = 4,
    max_iterations: int = 100,
) -> Clustering:
    """Cluster unit-length rows by cosine similarity (the pseudo-labels of paper section 3.3).

    Several k-means++ starts run on a sample that every worker holds. The best one continues on all
    rows: each worker assigns its own, and only centre sums are exchanged. Sums are float64, so that
    the result does not depend on how rows are split, except for near-ties. An empty cluster takes
    the sample row that fits its own centre worst.

    Args:
        local_bd: this worker's share of the n rows (`collectives.share`), unit length.
        num_rows: n, rows of all workers.
        num_clusters: c.
        seed: the only source of randomness.
        restarts: k-means++ starts.
        max_iterations: maximum number of iterations, on the sample and again on all rows.

    Raises:
        ValueError: more clusters than rows.
    """
    if num_clusters > num_rows:
        raise ValueError(f"num_clusters={num_clusters} exceeds the {num_rows} rows")
    generator = torch.Generator().manual_seed(seed)
    sample_sd = _gather_sample(local_bd, num_rows, max(_SAMPLE_ROWS, 4 * num_clusters), generator)
    best_cd, best_fit = sample_sd[:num_clusters], -torch.inf
    for _ in range(restarts):
        centers_cd = _plus_plus(sample_sd, num_clusters, generator)
        centers_cd = _lloyd(sample_sd, centers_cd, sample_sd, max_iterations, spread=False)
        fit = float((sample_sd @ centers_cd.T).amax(1).double().mean())
        if fit > best_fit:
            best_cd, best_fit = centers_cd, fit
    # Sums on a GPU have no fixed order: the workers' centres could differ in the last bit.
    best_cd = broadcast_first(best_cd)
    if num_rows > len(sample_sd):
        best_cd = _lloyd(local_bd, best_cd, sample_sd, max_iterations, spread=True)
    return Clustering(best_cd, (local_bd @ best_cd.T).argmax(1))


def _gather_sample(
    local_bd: Tensor, num_rows: int, most: int, generator: torch.Generator
) -> Tensor:
    """The same random rows, in the same order, on every worker."""
    chosen_s = torch.randperm(num_rows, generator=generator)[:most].to(local_bd.device)
    local = share(num_rows)
    mine_s = (chosen_s >= local.start) & (chosen_s < local.stop)
    sample_sd = local_bd.new_zeros(len(chosen_s), local_bd.shape[1])
    sample_sd[mine_s] = local_bd[chosen_s[mine_s] - local.start]
    return all_reduce_sum(sample_sd)


def _plus_plus(rows_sd: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: centres are drawn with probability ~ squared distance to the nearest one."""
    first = int(torch.randint(len(rows_sd), (), generator=generator))
    chosen = [first]
    distance_s = (1 - rows_sd @ rows_sd[first]).clamp_min(0)
    for _ in range(num_clusters - 1):
        weights_s = distance_s.double().cpu()
        # All remaining rows coincide with centres: any row not chosen yet will do.
        if not weights_s.any():
            weights_s = torch.ones_like(weights_s)
        weights_s[chosen] = 0
        index = int(torch.multinomial(weights_s, 1, generator=generator))
        chosen.append(index)
        distance_s = torch.minimum(distance_s, (1 - rows_sd @ rows_sd[index]).clamp_min(0))
    return rows_sd[chosen]


def _lloyd(
    rows_bd: Tensor, centers_cd: Tensor, sample_sd: Tensor, max_iterations: int, *, spread: bool
) -> Tensor:
    """Lloyd's iterations; with `spread`, rows are a worker's share and centre sums are reduced."""
    cluster_sums = ClusterSums(rows_bd, len(centers_cd))
    for _ in range(max_iterations):
        sums = cluster_sums.of((rows_bd @ centers_cd.T).argmax(1))
        if spread:
            sums = all_reduce_sum(sums)
        moved_cd = normalize(sums[:, :-1]).to(centers_cd.dtype)
        empty_c = sums[:, -1] == 0
        if num_empty := int(empty_c.sum()):
            worst_s = (sample_sd @ centers_cd.T).amax(1).argsort(stable=True)[:num_empty]
            moved_cd[empty_c] = sample_sd[worst_s]
        converged = torch.equal(moved_cd, centers_cd)
        centers_cd = moved_cd
        if converged:
            break
    return centers_cd
