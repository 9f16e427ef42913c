"""Label-free scores of a clustering, which a search without labels maximises.

Shapes: n samples, b of them this worker's share, m samples of a subset, c clusters, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from conr_ray.engine.embedder import Embedder
from conr_ray.method.clustering.metrics import (
    centre_silhouette,
    joint_counts,
    mean_stability,
    shared_information,
)
from conr_ray.method.collectives import all_reduce_sum, share
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.reranking import euclidean_neighbors

# Samples, or four a cluster, in the subset for scores that need more than all embeddings.
NUM_SCORED = 4096
# For the neighbour consistency; fixed, since a search may vary the method's own.
_NUM_NEIGHBORS = 10


def label_free_scores(
    embeddings_bd: Tensor,
    clusters_n: Tensor,
    centers_cd: Tensor,
    subset_m: Tensor,
    subset_md: Tensor,
    embedder: Embedder,
    key: int,
    cluster: Callable[[Tensor, int, int], Tensor],
) -> dict[str, float]:
    """`metric_names.LABEL_FREE_SCORES` of clusters of target embeddings; equal on all workers.

    silhouette: `centre_silhouette` of all samples.
    view_agreement: mutual information of the clusters of samples and their perturbed copies.
    neighbor_consistency: the same of samples and their 10 nearest neighbours, found among perturbed
        copies.
    restart_agreement: the same of samples and a clustering from one other random start.
    label_free: mean of the four.
    neighbor_stability: how likely those neighbours of a sample are in its cluster too, the mean
        over the clusters, whatever their sizes.

    Perturbed copies are those of `Inputs.perturbed`, which do not depend on the config, so that
    runs with different views can be compared.

    Mutual information is divided by log c, so it is in [0, 1]: it is low if few clusters are used,
    so that a collapse scores low; it is higher the more equal the sizes of clusters are, so compare
    clusters of unequal sizes by their stability. All scores but the silhouette use the subset.

    Args:
        embeddings_bd: this worker's share, unit length.
        clusters_n: of all samples.
        centers_cd: unit length.
        subset_m: rows of the subset, the same on all workers.
        subset_md: their embeddings.
        embedder: computed the embeddings.
        key: determines the perturbations and the other start.
        cluster: finds clusters of this worker's share of rows, (b,), of so many in all, by a seed.
    """
    num_rows, num_clusters = len(clusters_n), len(centers_cd)
    local, clusters_m = share(len(subset_m)), clusters_n[subset_m]

    def counts(left: Tensor, right: Tensor) -> Tensor:
        """How often the clusters occur in pairs that are split over the workers, (c, c)."""
        return all_reduce_sum(joint_counts(left, right, num_clusters))

    relit_bd = embedder.perturbed(subset_m[local], fold(key, "light"))
    _, near_mk = euclidean_neighbors(
        relit_bd, num_rows=len(subset_md), k=min(len(subset_md), 1 + _NUM_NEIGHBORS)
    )
    others_mk = clusters_m[near_mk[:, 1:]]
    near_cc = counts(clusters_m[local, None].expand_as(others_mk), others_mk)
    relit_cc = counts(clusters_m[local], (relit_bd @ centers_cd.T).argmax(1))
    again_b = cluster(subset_md[local], len(subset_md), fold(key, "restart"))
    silhouette = centre_silhouette(embeddings_bd, clusters_n[share(num_rows)], centers_cd)
    total = embeddings_bd.new_tensor(silhouette * len(embeddings_bd), dtype=torch.float64)
    scores = {
        "silhouette": float(all_reduce_sum(total)) / num_rows,
        "view_agreement": shared_information(relit_cc),
        "neighbor_consistency": shared_information(near_cc),
        "restart_agreement": shared_information(counts(clusters_m[local], again_b)),
    }
    mean = sum(scores.values()) / len(scores)
    return {"label_free": mean, **scores, "neighbor_stability": mean_stability(near_cc)}
