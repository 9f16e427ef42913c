"""Spherical k-means over embeddings that are split over the workers.

Shapes: b rows of this worker, n rows of all, s rows of the sample, d width, c clusters, r starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conr_ray.method.clustering.lloyd import cluster_sums, refine
from conr_ray.method.clustering.merging import merge
from conr_ray.method.clustering.seeding import greedy_starts
from conr_ray.method.collectives import all_reduce_sum, broadcast_first, share
from conr_ray.method.neighbors.rough_products import full_precision

# Rows of the sample that centres are drawn from: in all at least, and for each centre.
_SEED_ROWS, _ROWS_PER_SEED = 4096, 32
# Most centres beyond the number of clusters, and iterations before they are merged.
_MOST_SURPLUS, _SURPLUS_ITERATIONS = 128, 10


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
    start_rows: int = 8192,
    warm_cd: Tensor | None = None,
) -> Clustering:
    """Cluster unit-length rows by cosine similarity (the pseudo-labels of paper section 3.3).

    Several starts are refined on a sample that every worker holds. Each takes half as many centres
    again as are asked for, by greedy k-means++, and merges the clusters that differ least: Lloyd's
    iterations seldom find a cluster in which no centre began. The best start continues on all rows:
    each worker assigns its own, and only centre sums are exchanged. They are float64, so that the
    result does not depend on how rows are split, except for near-ties. An empty cluster takes the
    sample row that fits its own centre worst. With fewer distinct rows than clusters, some centres
    coincide.

    Args:
        local_bd: this worker's share of the n rows (`collectives.share`), unit length.
        num_rows: n, rows of all workers.
        num_clusters: c.
        seed: the only source of randomness.
        restarts: starts on the sample; 0 with `warm_cd` continues from there and nowhere else.
        max_iterations: maximum number of iterations, on the sample and again on all rows.
        start_rows: rows of the sample, at least 4 c; more than n are all.
        warm_cd: centres to continue from, unless a start fits the sample better after both are
            refined on it.

    Raises:
        ValueError: more clusters than rows.
    """
    if num_clusters > num_rows:
        raise ValueError(f"num_clusters={num_clusters} exceeds the {num_rows} rows")
    generator = torch.Generator().manual_seed(seed)
    with full_precision(local_bd.device):
        most = max(start_rows, 4 * num_clusters)
        sample_sd = _gather_sample(local_bd, num_rows, most, generator)
        starts = [] if warm_cd is None else [warm_cd[None]]
        if restarts:
            starts.append(_starts(sample_sd, num_clusters, restarts, generator))
        starts_rcd = torch.cat(starts)
        found_rcd = refine(sample_sd, starts_rcd, sample_sd, max_iterations, spread=False)
        best_1 = _fits(sample_sd, found_rcd).argmax(0, keepdim=True)
        spread = num_rows > len(sample_sd)
        if spread and warm_cd is not None:
            # Nearer to where it will end than what is left of it on the sample.
            found_rcd[0] = warm_cd
        # Sums on a GPU have no fixed order: the workers' centres could differ in the last bit.
        best_1cd = broadcast_first(found_rcd.index_select(0, best_1))
        if spread:
            best_1cd = refine(local_bd, best_1cd, sample_sd, max_iterations, spread=True)
        return Clustering(best_1cd[0], (local_bd @ best_1cd[0].T).argmax(1))


def _starts(
    sample_sd: Tensor, num_clusters: int, num_starts: int, generator: torch.Generator
) -> Tensor:
    """Centres of several starts, each with its surplus merged, (r, c, d)."""
    surplus = min(num_clusters // 2, _MOST_SURPLUS, len(sample_sd) - num_clusters)
    drawn = num_clusters + surplus
    rows_sd = sample_sd[: max(_SEED_ROWS, _ROWS_PER_SEED * drawn)]
    starts_rad = greedy_starts(rows_sd, drawn, num_starts, generator)
    starts_rad = refine(sample_sd, starts_rad, sample_sd, _SURPLUS_ITERATIONS, spread=False)
    sums_rad = cluster_sums(sample_sd, starts_rad)[..., :-1]
    return merge(sums_rad, num_clusters).to(sample_sd.dtype)


def _fits(sample_sd: Tensor, centers_rcd: Tensor) -> Tensor:
    """Mean cosine of the rows and their nearest centres, for each start, (r,)."""
    return torch.stack([(sample_sd @ c.T).amax(1).double().mean() for c in centers_rcd])


def _gather_sample(
    local_bd: Tensor, num_rows: int, most: int, generator: torch.Generator
) -> Tensor:
    """The same random rows, in the same order, on every worker."""
    chosen_s = torch.randperm(num_rows, generator=generator)[:most].to(local_bd.device)
    local = share(num_rows)
    mine_s = (chosen_s >= local.start) & (chosen_s < local.stop)
    sample_sd = local_bd.new_zeros(len(chosen_s), local_bd.shape[1])
    if len(local_bd):
        sample_sd = local_bd[(chosen_s - local.start).clamp(0, len(local_bd) - 1)]
        sample_sd.mul_(mine_s[:, None])
    return all_reduce_sum(sample_sd)
